"""The blocks of one stage, and what it takes to run them once: device, draws, precision, buffers.

Nothing in here knows which batch is late, or that there are gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raylab.algorithms.stage.batch_buffers import BatchBuffers
from raylab.algorithms.stage.host_draws import HostDraws
from raylab.algorithms.stage.module_copy import extra_states, load_extra_states
from raylab.algorithms.stage.one_value import one_value_told
from raylab.algorithms.stage.packing import as_list, packed
from raylab.algorithms.stage.settings import StageSettings, Tensors, Unit, draw_key

__all__ = ["StageBlocks"]


class StageBlocks:
    """The blocks of one stage.

    Args:
        module: the blocks; moved to the stage's device.
        settings: the numbers of the stage.
        passes_down: whether somebody asks for the gradients at the inputs.
    """

    def __init__(self, module: nn.Module, settings: StageSettings, *, passes_down: bool) -> None:
        self.device = torch.device(settings.device)
        self.module = module.to(self.device).train()
        self.buffers = BatchBuffers(self.module)
        self._settings = settings
        self._passes_down = passes_down
        self._bfloat16 = settings.precision == "bfloat16"
        self._slots = _slots(self.module)
        self._host = HostDraws(self.module)

    def here(self, tensors: Tensors) -> list[Tensor]:
        """Return the tensors that are there, on the stage's device."""
        return [t.to(self.device) for t in tensors if t is not None]

    def received(self, inputs: Tensors) -> list[Tensor]:
        """Return the inputs on the stage's device; leaves of its graph, where that goes down."""
        received = self.here(inputs)
        if not self._passes_down:
            return received
        return [
            t.detach().requires_grad_(t.is_floating_point() or t.is_complex()) for t in received
        ]

    def protected(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the inputs, as copies where the first block writes into them."""
        return [t.clone() for t in inputs] if self._settings.protect_inputs else inputs

    def run(self, inputs: Sequence[Tensor], state: dict[str, Tensor]) -> list[Tensor]:
        """Return the features.

        Args:
            inputs: as `received`.
            state: weights and buffers, by name, in place of the blocks' own. A block that puts
                another tensor in a buffer's place puts it in here.
        """
        inputs = self.protected(inputs)
        with one_value_told():
            if not state:
                return as_list(self.module(packed(inputs)))
            return as_list(functional_call(self.module, state, (packed(inputs),)))

    @contextlib.contextmanager
    def holding(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Put weights and buffers, by name, in place of the blocks' own while something runs.

        Unlike `functional_call` it may be a backward pass: what is computed again in there, by
        `torch.utils.checkpoint` or a hook, then reads these.
        """
        slots = self._slots
        places = [
            (where, key, t) for name, t in state.items() for where, key in slots.get(name, ())
        ]
        own = [where[key] for where, key, _ in places]
        for where, key, tensor in places:
            where[key] = tensor
        try:
            yield
        finally:
            for (where, key, _), tensor in zip(places, own, strict=True):
                where[key] = tensor

    def copies(self) -> dict[str, Tensor]:
        """Return copies of weights and buffers by name, the weights as leaves of a graph."""
        weights = self.module.named_parameters()
        copied = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in weights}
        return {**copied, **self.buffers.copies()}

    def run_aside(self, inputs: Sequence[Tensor], state: dict[str, Tensor]) -> list[Tensor]:
        """Return the features of a forward that moves no extra state; `state` as of `run`."""
        extra = extra_states(self.module)
        outputs = self.run(inputs, state)
        load_extra_states(self.module, extra)
        return outputs

    def drawing(self, unit: Unit, part: int | None = None) -> AbstractContextManager[None]:
        """Return the context of a unit's forward: it draws the same whenever it is run.

        Args:
            unit: a batch or micro-batch.
            part: in place of the unit's own.
        """
        part = unit.part if part is None else part
        key = draw_key(self._settings.seed, self._settings.stage, unit.batch, part)
        # Not torch.manual_seed: it keeps a formatted stack for every accelerator not yet in use,
        # which costs a millisecond a call and is never freed.
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)
        return self._host.keyed(key)

    def autocast(self) -> torch.autocast:
        """Return the context in which the stage computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16)

    def mode(self, *, training: bool) -> None:
        """Train or test."""
        if self.module.training is not training:
            self.module.train(training)

    def synchronise(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _slots(module: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Return where modules look up each parameter and buffer, by the name it has first."""
    first: dict[int, str] = {}
    found: dict[str, list[tuple[dict[str, Any], str]]] = {}
    for prefix, each in module.named_modules():
        for where in (each._parameters, each._buffers):
            for key, tensor in where.items():
                if tensor is not None:
                    name = first.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
                    found.setdefault(name, []).append((where, key))
    return found
