"""The computation of one stage under DGL: back-propagation of a loss of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from raylab.algorithms.pipeline.dgl import AuxiliaryClassifier
from raylab.algorithms.stage.cut_features import companion
from raylab.algorithms.stage.delayed_stage import DelayedStage
from raylab.algorithms.stage.in_flight import InFlight
from raylab.algorithms.stage.layerwise import recording
from raylab.algorithms.stage.settings import StageSettings, Tensors, Unit, draw_key
from raylab.errors import ModelError

__all__ = ["LocalLossStage"]


class LocalLossStage(DelayedStage):
    """A stage without delay whose error gradient comes from its own auxiliary classifier.

    Classifier and blocks are trained as one: one optimiser, one norm where gradients are clipped.

    Args:
        module: the blocks of the stage.
        settings: the numbers of the stage; `cut` below the last stage.
        loss_fn: (outputs, labels) -> mean loss over the samples; used at every stage.
        options: as for `DelayedStage`.
    """

    passes_down = False

    def __init__(
        self,
        module: nn.Module,
        settings: StageSettings,
        *,
        loss_fn: Callable[..., Tensor] | None = None,
        **options: Any,
    ) -> None:
        self.classifier: AuxiliaryClassifier | None = None
        if not settings.last:
            if settings.cut is None:
                raise ModelError(f"stage {settings.stage} must know the features at its cut")
            key = draw_key(settings.seed, settings.stage, -1, 0)
            self.classifier = companion(AuxiliaryClassifier, settings.cut, key)
        super().__init__(module, settings, loss_fn=loss_fn, companion=self.classifier, **options)

    def ends(
        self, unit: Unit, entry: InFlight, gradients: Tensors
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the loss of the classifier."""
        if self.classifier is None:
            return super().ends(unit, entry, gradients)
        with self.blocks.autocast(), recording(self.window.optimizer, entry.recorded):
            scores = self.classifier(entry.outputs[0])
            loss = self.loss.counted(unit, [scores], entry.labels)
        return [loss], [torch.ones_like(loss)]
