"""The window of M batches whose mean gradient makes one update, and the update."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raylab.algorithms.stage.layerwise import watch
from raylab.algorithms.stage.settings import OptimizerFactory, ScheduleFactory, StageSettings
from raylab.algorithms.stage.state import (
    BESIDE,
    copied,
    load_module,
    load_optimizer,
    module_state,
    optimizer_state,
)
from raylab.algorithms.stage.trained_by import no_zero_step, trained_by
from raylab.errors import ConfigError

__all__ = ["UpdateWindow"]


class UpdateWindow:
    """The parameters that a stage trains, their gradients, and the rule that moves them.

    The sum of the window's gradients is in `p.grad`, where torch's optimisers look for it.

    Args:
        module: the blocks of the stage.
        settings: the numbers of the stage.
        optimizer: makes a torch optimiser from the parameters.
        schedule: makes a learning-rate scheduler from it, stepped once an update; None: constant.
        companion: a network that is trained with the blocks, but is no part of their state.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: StageSettings,
        *,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        companion: nn.Module | None = None,
    ) -> None:
        beside = [] if companion is None else [*companion.parameters()]
        self.trained = [p for p in (*module.parameters(), *beside) if p.requires_grad]
        self.optimizer = optimizer(self.trained) if self.trained else None
        self.updates = 0
        self.staleness: list[int] = []
        """Of the window's batches so far, in updates."""
        self._settings = settings
        self._companion = companion
        named = companion.named_parameters(BESIDE) if companion else ()
        self._names = {id(p): name for name, p in (*module.named_parameters(), *named)}
        both = [module] if companion is None else [module, companion]
        # Before the scheduler is made: it may split the groups.
        self._layerwise = watch(self.optimizer, *both, names=self._names, by_hand=True)
        self._schedule = schedule(self.optimizer) if schedule and self.optimizer else None
        self._held = trained_by(self.optimizer, self.trained) if self.optimizer else []
        self._held_ids = {id(p) for p in self._held}
        self._freezes_fc = getattr(schedule, "freezes_fc", None)
        linear = [m for each in both for m in each.modules() if isinstance(m, nn.Linear)]
        self._fully_connected = [p for m in linear for p in m.parameters(recurse=False)]
        self._seen = False

    @property
    def learning_rate(self) -> float | None:
        """Of the next update; None where there is nothing to train."""
        if self.optimizer is None:
            return None
        return float(self.optimizer.param_groups[0]["lr"])

    def add(self, gradients: Sequence[Tensor | None], others: Iterable[Tensor | None]) -> None:
        """Add the gradient of one unit.

        Args:
            gradients: one a parameter, None where there is none; they are the window's from now on,
                but for those of parameters that the optimiser has not taken.
            others: tensors that are somebody else's, though they may share memory with these.
        """
        self._seen = True
        # autograd may hand out one tensor twice, or the one that travels on: p.grad is scaled in
        # place later, so it must be nobody else's.
        taken = {_memory(t) for t in others if t is not None}
        for p, gradient in zip(self.trained, gradients, strict=True):
            if gradient is None or id(p) not in self._held_ids:
                continue
            if p.grad is not None:
                p.grad.add_(gradient)
                continue
            if gradient.layout is torch.strided:
                if _memory(gradient) in taken or 0 in gradient.stride():
                    gradient = gradient.clone(memory_format=torch.contiguous_format)
                taken.add(_memory(gradient))
            p.grad = gradient

    def apply(self) -> list[int]:
        """Move the parameters by the mean gradient, and begin the next window.

        Norm and limits are those of the parameters that the optimiser holds.

        A window before the first gradient is a step with g = 0 (5.8): weight decay, momentum and
        Adam's step count act. The mean is over M also where the last window is only part full.

        Returns:
            The staleness of each batch that it was made of.

        Raises:
            ConfigError: the optimiser cannot make a step with g = 0.
        """
        if not self._seen:
            for p in self._held:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in self._held if p.grad is not None]
        if self._settings.accumulate > 1 and grads:
            torch._foreach_mul_(grads, 1.0 / self._settings.accumulate)
            if self._layerwise is not None:
                self._layerwise.scale(1.0 / self._settings.accumulate)
        if self._freezes_fc is not None and self._freezes_fc(self.updates):
            for p in self._fully_connected:
                p.grad = None  # FC-freeze: neither gradient nor momentum nor decay moves it
        if self._settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._held, self._settings.clip_norm)
        if self._settings.clip_value is not None and grads:
            nn.utils.clip_grad_value_(self._held, self._settings.clip_value)
        if self.optimizer is not None:
            if self._seen:
                self.optimizer.step()
            else:
                self._step_of_zero(self.optimizer)
            self.optimizer.zero_grad(set_to_none=True)
        if self._schedule is not None:
            self._schedule.step()
        self.updates += 1
        self._seen = False
        staleness, self.staleness = self.staleness, []
        return staleness

    def _step_of_zero(self, optimizer: Optimizer) -> None:
        try:
            optimizer.step()
        except Exception as error:
            raise ConfigError(
                no_zero_step(optimizer, f"{type(error).__name__}: {error}")
            ) from error
        if not all(bool(torch.isfinite(p).all()) for p in self._held):
            raise ConfigError(no_zero_step(optimizer, "its weights are no longer finite"))

    def layer_figures(self) -> dict[str, list[Any]]:
        """Return what the last update has found out about each layer, if the rule looks at them."""
        return {} if self._layerwise is None else self._layerwise.layer_figures()

    def save(self) -> dict[str, Any]:
        """Return copies of all but the blocks' own weights."""
        optimizer, schedule = self.optimizer, self._schedule
        return {
            "companion": module_state(self._companion) if self._companion else None,
            "optimizer": optimizer_state(optimizer, self._names) if optimizer else None,
            "schedule": copy.deepcopy(schedule.state_dict()) if schedule else None,
            "gradients": {
                self._names[id(p)]: copied(p.grad) for p in self.trained if p.grad is not None
            },
            "samples": self._layerwise.samples_state() if self._layerwise else None,
            "seen": self._seen,
            "updates": self.updates,
            "staleness": list(self.staleness),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        if self._companion is not None and saved["companion"] is not None:
            load_module(self._companion, saved["companion"])
        if self.optimizer is not None:
            load_optimizer(self.optimizer, self._names, saved["optimizer"])
        if self._layerwise is not None and saved.get("samples") is not None:
            self._layerwise.restore_samples(saved["samples"])
        if self._schedule is not None:
            self._schedule.load_state_dict(copy.deepcopy(saved["schedule"]))
        for p in self.trained:
            held = id(p) in self._held_ids
            kept = saved["gradients"].get(self._names[id(p)]) if held else None
            p.grad = None if kept is None else kept.to(p.device, copy=True)
        self._seen = saved["seen"]
        self.updates = saved["updates"]
        self.staleness = list(saved["staleness"])


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
