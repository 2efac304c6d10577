"""The computation of one stage under DNI: back-propagation of an error gradient of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from raylab.algorithms.pipeline.dni import Synthesizer
from raylab.algorithms.stage.batch_buffers import BatchBuffers
from raylab.algorithms.stage.cut_features import companion
from raylab.algorithms.stage.delayed_stage import DelayedStage
from raylab.algorithms.stage.in_flight import InFlight
from raylab.algorithms.stage.layerwise import watch
from raylab.algorithms.stage.settings import (
    OptimizerFactory,
    ScheduleFactory,
    StageSettings,
    Tensors,
    Unit,
    draw_key,
)
from raylab.algorithms.stage.state import (
    load_module,
    load_optimizer,
    module_state,
    optimizer_state,
)
from raylab.algorithms.stage.trained_by import trained_by
from raylab.errors import ModelError

__all__ = ["SyntheticStage"]


class SyntheticStage(DelayedStage):
    """A stage without delay whose error gradient comes from its own synthesizer.

    The synthesizer learns the gradient of a *sample's* loss, that is n times the error gradient of
    a mean over n samples: so a ragged batch is no other task, and what is learnt does not shrink
    with the batch. Its loss is the mean squared error over all elements. A mean and not the norm
    of (6.6), because the curvature then does not grow with the width or the resolution of the
    features, and the learning rate of the stage is a sensible one for its synthesizer. That the
    targets are small does no harm: least squares converges at a rate that only the inputs of the
    output layer set.

    Args:
        module: the blocks of the stage.
        settings: the numbers of the stage; `cut` below the last stage.
        optimizer: makes a torch optimiser from parameters: one for the blocks and one for the
            synthesizer, which takes a step a correction.
        schedule: makes a learning-rate scheduler from it; the synthesizer's is stepped every M
            corrections.
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
        **options: Any,
    ) -> None:
        super().__init__(
            module, settings, optimizer=optimizer, schedule=schedule, loss_fn=loss_fn, **options
        )
        self.synthesizer: Synthesizer | None = None
        if settings.last:
            return
        if settings.cut is None:
            raise ModelError(f"stage {settings.stage} must know the features at its cut")
        key = draw_key(settings.seed, settings.stage, -1, 0)
        self.synthesizer = companion(Synthesizer, settings.cut, key).to(self.blocks.device)
        self._statistics = BatchBuffers(self.synthesizer)
        learning = list(self.synthesizer.parameters())
        self._learning = optimizer(learning)
        trained_by(self._learning, learning)
        watch(self._learning, self.synthesizer)
        self._learning_schedule = schedule(self._learning) if schedule else None
        self._corrections = 0
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def correct(self, unit: Unit, gradients: Tensors) -> None:
        """Move the synthesizer one step towards the error gradient of `unit` that has come.

        It is evaluated anew, at its weights of now, on the features that it saw; its running
        statistics move here, once a batch.
        """
        synthesizer = self._its_synthesizer()
        features, labels = self._kept.pop((unit.batch, unit.part))
        (arrived,) = gradients
        # Features that the stage above makes nothing of have no gradient, which is one of zero.
        arrived = torch.zeros_like(features) if arrived is None else arrived.to(self.blocks.device)
        synthesizer.train(_normalisable(features))
        with self.blocks.autocast():
            made = synthesizer(features, labels)
        made = made.to(self._dtype())
        error = F.mse_loss(made, self._per_sample(len(features)) * arrived.to(made.dtype))
        error.backward()  # type: ignore[no-untyped-call]
        self._learning.step()
        synthesizer.zero_grad()
        self._corrections += 1
        if self._learning_schedule and self._corrections % self.settings.accumulate == 0:
            self._learning_schedule.step()
        self.figures.synthesised(float(error.detach()))

    def save(self) -> dict[str, Any]:
        """Return the stage, its synthesizer, and what waits for a correction."""
        saved = super().save()
        if self.synthesizer is None:
            return saved
        schedule = self._learning_schedule
        return {
            **saved,
            "synthesizer": {
                "weights": module_state(self.synthesizer),
                "optimizer": optimizer_state(self._learning, self._synthesizer_names()),
                "schedule": copy.deepcopy(schedule.state_dict()) if schedule else None,
                "corrections": self._corrections,
                "kept": [
                    {"batch": batch, "part": part, "features": x.cpu(), "labels": y.cpu()}
                    for (batch, part), (x, y) in self._kept.items()
                ],
            },
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned; without a synthesizer in it, this one begins anew."""
        super().restore(saved)
        learnt = saved.get("synthesizer")
        if self.synthesizer is None or learnt is None:
            return
        load_module(self.synthesizer, learnt["weights"])
        load_optimizer(self._learning, self._synthesizer_names(), learnt["optimizer"])
        if self._learning_schedule:
            self._learning_schedule.load_state_dict(copy.deepcopy(learnt["schedule"]))
        self._corrections = learnt["corrections"]
        self._kept = {
            (k["batch"], k["part"]): (
                k["features"].to(self.blocks.device),
                k["labels"].to(self.blocks.device),
            )
            for k in learnt["kept"]
        }

    def _synthesizer_names(self) -> dict[int, str]:
        return {id(p): name for name, p in self._its_synthesizer().named_parameters()}

    def ends(
        self, unit: Unit, entry: InFlight, gradients: Tensors
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features, and the gradient that the synthesizer makes of them."""
        if self.synthesizer is None:
            return super().ends(unit, entry, gradients)
        features = entry.outputs[0].detach()
        labels = next(t.to(self.blocks.device) for t in entry.labels if t is not None)
        self._kept[unit.batch, unit.part] = (features, labels)
        self.figures.in_flight(1, len(self._kept))
        return super().ends(unit, entry, (self._synthesise(features, labels),))

    def _synthesise(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the error gradient of a batch, made with copies of the running statistics."""
        synthesizer = self._its_synthesizer().train(_normalisable(features))
        with torch.no_grad(), self.blocks.autocast():
            made: Tensor = functional_call(
                synthesizer, self._statistics.copies(), (features, labels)
            )
        return (made.to(self._dtype()) / self._per_sample(len(features))).to(features.dtype)

    def _per_sample(self, samples: int) -> int:
        """Return the factor between the gradient of the batch's loss and of a sample's own."""
        return 1 if self.loss.sums else samples

    def _dtype(self) -> torch.dtype:
        return next(self._its_synthesizer().parameters()).dtype

    def _its_synthesizer(self) -> Synthesizer:
        if self.synthesizer is None:
            raise ModelError("the last stage has the true gradient and no synthesizer")
        return self.synthesizer


def _normalisable(features: Tensor) -> bool:
    """Return whether a batch has statistics of its own; a single sample (1, C) has none."""
    return features.numel() > features.shape[1]
