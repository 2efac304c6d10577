"""The computation of one stage under every method of the family: forward, backward, update.

Satisfies `actors.protocols.StageRule` without importing it: the same object runs in a Ray actor,
in one process, and under a simulated clock.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raylab.algorithms.batch_buffers import BatchBuffers
from raylab.algorithms.stage_figures import StageFigures, correct_predictions
from raylab.algorithms.weight_versions import WeightVersion, WeightVersions
from raylab.errors import ModelError, NonFiniteLossError

__all__ = [
    "DelayedStage",
    "OptimizerFactory",
    "ScheduleFactory",
    "StageSettings",
    "draw_key",
    "packed",
]

Tensors = tuple[Tensor | None, ...]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]


class Unit(Protocol):
    """A batch or micro-batch, see `actors.protocols.Unit`."""

    @property
    def batch(self) -> int: ...
    @property
    def part(self) -> int: ...
    @property
    def parts(self) -> int: ...
    @property
    def share(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """The numbers of one stage.

    Args:
        stage: 0 at the input.
        stages: K.
        delay: D, batches between a forward and its backward; None: until the window ends.
        accumulate: M, batches per update.
        flush: whether the pipeline empties before every update (then no version is kept).
        replay: re-run the forward with the current weights before back-propagating.
        weight_version: weights that a delayed backward reads.
        clip_norm: largest Euclidean norm of the stage's mean gradient, None: no limit.
        clip_value: largest magnitude of an element of it, None: no limit.
        precision: "float32" computes in the dtype of the weights, "bfloat16" under autocast.
        seed: of the draws inside the network, such as dropout.
        protect_inputs: the first block writes into its input, so give it a copy.
        device: where the stage computes.
    """

    stage: int
    stages: int
    delay: int | None
    accumulate: int = 1
    flush: bool = False
    replay: bool = False
    weight_version: WeightVersion = "forward"
    clip_norm: float | None = None
    clip_value: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    protect_inputs: bool = False
    device: str = "cpu"

    @property
    def last(self) -> bool:
        """Whether the stage has the loss."""
        return self.stage == self.stages - 1


@dataclass(slots=True)
class _InFlight:
    """One unit between its forward and its backward: a graph, or an input to replay."""

    inputs: list[Tensor]
    labels: Tensors
    version: int
    outputs: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)


def draw_key(seed: int, stage: int, batch: int, part: int) -> int:
    """Return the seed of the draws of one unit at one stage, so that a replay draws the same."""
    text = f"{seed}/{stage}/{batch}/{part}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


class DelayedStage:
    """One stage of a network.

    Args:
        module: the blocks of the stage; it is trained in place.
        settings: the numbers of the stage.
        optimizer: makes a torch optimiser from the stage's parameters.
        schedule: makes a learning-rate scheduler from it, stepped once an update; None: constant.
        loss_fn: (outputs, labels) -> mean loss over the samples; used at the last stage.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: StageSettings,
        *,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        loss_fn: Callable[..., Tensor] | None = None,
    ) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.module = module.to(self.device).train()
        self.updates = 0
        self._loss_fn = loss_fn
        self._sums = getattr(loss_fn, "reduction", "mean") == "sum"
        self._trained = [p for p in self.module.parameters() if p.requires_grad]
        self._names = [n for n, p in self.module.named_parameters() if p.requires_grad]
        self._optimizer = optimizer(self._trained) if self._trained else None
        self._schedule = schedule(self._optimizer) if schedule and self._optimizer else None
        # With D = 0 or a flush every backward comes before the next update: no version is needed.
        self._stale = settings.delay != 0 and not settings.flush
        self._replays = settings.replay and self._stale
        self._versions = WeightVersions(self.module, settings.weight_version)
        self._buffers = BatchBuffers(self.module)
        self._open: dict[tuple[int, int], _InFlight] = {}
        self._staleness: list[int] = []
        self._seen = False
        self._figures = StageFigures()

    # ----------------------------------------------------------------- training

    def forward(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute the features of `unit`; at the last stage its loss, and return nothing.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        self._mode(training=True)
        entry = _InFlight(self._receive(inputs), labels, self.updates)
        self._open[unit.batch, unit.part] = entry
        if self._replays:
            outputs = self._play(unit, entry)
        else:
            self._grow_graph(unit, entry)
            outputs = entry.outputs
        inputs_open = len(self._open)
        self._figures.in_flight(0 if self._replays else inputs_open, inputs_open)
        return () if self.settings.last else tuple(t.detach() for t in outputs)

    def backward(self, unit: Unit, gradients: Tensors) -> Tensors:
        """Add the gradient of `unit` to the window's; return the error gradients at its inputs."""
        entry = self._open.pop((unit.batch, unit.part))
        if self._replays:
            self._mode(training=True)
            self._grow_graph(unit, entry)
            self._figures.in_flight(1, len(self._open) + 1)
        if unit.part + 1 == unit.parts:
            self._staleness.append(self.updates - entry.version)
        return self._back_propagate(entry, gradients)

    def update(self) -> None:
        """Apply the mean gradient of the window's M batches: (16) of ADL; (5.9) of HUO for M = 1.

        A window before the first gradient is a step with g = 0 (5.8): weight decay, momentum and
        Adam's step count act. The mean is over M also where the last window is only part full.
        """
        if not self._seen:
            for p in self._trained:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in self._trained if p.grad is not None]
        if self.settings.accumulate > 1 and grads:
            torch._foreach_mul_(grads, 1.0 / self.settings.accumulate)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self.settings.clip_norm)
        if self.settings.clip_value is not None and grads:
            nn.utils.clip_grad_value_(self._trained, self.settings.clip_value)
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        if self._schedule is not None:
            self._schedule.step()
        self._versions.updated()
        self._seen = False
        self.updates += 1
        self._figures.applied(self._staleness)
        self._staleness = []

    # ----------------------------------------------------------------- the rest of the protocol

    def evaluate(self, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute the features of a test batch with the weights of now; count its loss at the end.

        Running statistics are used, not moved; nothing is drawn.
        """
        self._mode(training=False)
        with torch.no_grad(), self._autocast():
            outputs = self._call({}, [t.to(self.device) for t in inputs if t is not None])
            if self.settings.last:
                loss, score, targets = self._loss(outputs, labels)
                size = targets[0].shape[0]
                mean = float(loss) / (size if self._sums else 1)
                self._figures.test.add(mean, size, correct_predictions(score, targets[0]))
                return ()
        return tuple(outputs)

    def report(self) -> dict[str, Any]:
        """Return the figures since the last report, and the learning rate of the next update."""
        row = self._figures.row()
        self._figures = StageFigures()
        if self._optimizer is not None:
            row["learning_rate"] = float(self._optimizer.param_groups[0]["lr"])
        return row

    def state(self) -> dict[str, Tensor]:
        """Return weights and buffers by name, copied to the CPU."""
        return {name: t.detach().cpu().clone() for name, t in self.module.state_dict().items()}

    def measure(self, inputs: Tensors, repeats: int) -> list[tuple[float, float]]:
        """Time forward and backward, with its share of an update, on a copy of the stage.

        The last stage is timed up to its output, the loss being small beside it.

        Returns:
            (forward, backward) in seconds, one pair a repeat.
        """
        # In one go, so that the copied optimiser steps the copied parameters.
        twin, optimizer = copy.deepcopy((self.module.train(), self._optimizer))
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            given = self._protected(self._receive(inputs))
            with self._autocast():
                outputs = _as_list(twin(packed(given)))
            self._synchronise()
            forwarded = time.perf_counter()
            ends = [t for t in outputs if t.requires_grad]
            if ends:
                torch.autograd.backward(ends, [torch.zeros_like(t) for t in ends])
            self._synchronise()
            returned = time.perf_counter()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self._synchronise()
            update_s = (time.perf_counter() - returned) / self.settings.accumulate
            times.append((forwarded - started, returned - forwarded + update_s))
        return times

    # ----------------------------------------------------------------- inside

    def _receive(self, inputs: Tensors) -> list[Tensor]:
        """Return the inputs as leaves of this stage's graph, on its device."""
        received = [t.to(self.device) for t in inputs if t is not None]
        if self.settings.stage == 0:
            return received
        return [
            t.detach().requires_grad_(t.is_floating_point() or t.is_complex()) for t in received
        ]

    def _call(self, state: dict[str, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the blocks, with the weights and buffers of `state` where it has any."""
        inputs = self._protected(inputs)
        if not state:
            return _as_list(self.module(packed(inputs)))
        return _as_list(functional_call(self.module, state, (packed(inputs),)))

    def _protected(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return [t.clone() for t in inputs] if self.settings.protect_inputs else inputs

    def _play(self, unit: Unit, entry: _InFlight) -> list[Tensor]:
        """Forward without a graph, into copies of the buffers: the replay moves the real ones."""
        self._draw(unit)
        with torch.no_grad(), self._autocast():
            return self._call(self._buffers.copies(), entry.inputs)

    def _grow_graph(self, unit: Unit, entry: _InFlight) -> None:
        """Forward with a graph, at the version of the weights that the backward is to read."""
        self._draw(unit)
        weights = self._versions.now() if self._stale and not self._replays else None
        buffers = self._buffers.copies() if unit.parts > 1 else {}
        state = {**(weights or {}), **buffers}
        with self._autocast():
            entry.outputs = self._call(state, entry.inputs)
            entry.weights = [weights[n] for n in self._names] if weights else [*self._trained]
            if self.settings.last:
                entry.outputs = [self._count_loss(unit, entry)]
        if buffers:
            # From `state`: a module that replaces a buffer has put the new one there.
            buffers = {name: state[name] for name in buffers}
            self._buffers.moved(buffers, share=unit.share, last=unit.part + 1 == unit.parts)

    def _count_loss(self, unit: Unit, entry: _InFlight) -> Tensor:
        loss, score, targets = self._loss(entry.outputs, entry.labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss must be finite, but batch {unit.batch} gave {value}: lower the learning "
                "rate, warm up, accumulate more batches, or clip the gradients"
            )
        size = targets[0].shape[0]
        value = value / size if self._sums else value
        self._figures.train.add(value, size, correct_predictions(score.detach(), targets[0]))
        # A sum over samples adds up over micro-batches as it is; a mean counts by its share.
        return loss if self._sums else loss * unit.share

    def _loss(
        self, outputs: Sequence[Tensor], labels: Tensors
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        targets = [t.to(self.device) for t in labels if t is not None]
        if self._loss_fn is None:
            raise ModelError("the last stage must be given a loss function, but got None")
        loss = self._loss_fn(packed(outputs), packed(targets))
        return loss.reshape(()), outputs[0], targets

    def _back_propagate(self, entry: _InFlight, gradients: Tensors) -> Tensors:
        wanted = [t for t in entry.inputs if t.requires_grad]
        if self.settings.last:
            ends, given = entry.outputs, [torch.ones_like(entry.outputs[0])]
        else:
            pairs = [
                (out, gradient.to(self.device))
                for out, gradient in zip(entry.outputs, gradients, strict=True)
                if gradient is not None and out.requires_grad
            ]
            ends, given = [out for out, _ in pairs], [gradient for _, gradient in pairs]
        self._seen = True
        if not any(end.requires_grad for end in ends):
            return tuple(None for _ in entry.inputs)
        found: Tensors = torch.autograd.grad(
            ends, [*wanted, *entry.weights], given, allow_unused=True
        )
        # autograd may hand out one tensor twice, or the one that travels on: p.grad is scaled in
        # place later, so it must be nobody else's.
        taken = {_memory(t) for t in (*found[: len(wanted)], *given) if t is not None}
        for p, gradient in zip(self._trained, found[len(wanted) :], strict=True):
            if gradient is None:
                continue
            if p.grad is not None:
                p.grad.add_(gradient)
                continue
            if gradient.layout is torch.strided:
                if _memory(gradient) in taken or 0 in gradient.stride():
                    gradient = gradient.clone(memory_format=torch.contiguous_format)
                taken.add(_memory(gradient))
            p.grad = gradient
        at_inputs = iter(found[: len(wanted)])
        return tuple(next(at_inputs) if t.requires_grad else None for t in entry.inputs)

    def _draw(self, unit: Unit) -> None:
        key = draw_key(self.settings.seed, self.settings.stage, unit.batch, unit.part)
        # Not torch.manual_seed: it keeps a formatted stack for every accelerator not yet in use,
        # which costs a millisecond a call and is never freed.
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"
        )

    def _mode(self, *, training: bool) -> None:
        if self.module.training is not training:
            self.module.train(training)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def packed(tensors: Sequence[Tensor]) -> Any:
    """Return what a block is called with, as in nn.Sequential: a tensor, or a tuple as one."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _as_list(outputs: Any) -> list[Tensor]:
    tensors: list[Any] = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    others = [type(t).__name__ for t in tensors if not isinstance(t, Tensor)]
    if others or not tensors:
        raise ModelError(f"a block must return a tensor or a tuple of tensors, but got {others}")
    return tensors
