"""The loss of a stage: computed, counted, and checked to be finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raylab.algorithms.stage.blocks import StageBlocks
from raylab.algorithms.stage.figures import StageFigures
from raylab.algorithms.stage.late_losses import LateLosses
from raylab.algorithms.stage.loss_terms import loss_terms
from raylab.algorithms.stage.packing import packed
from raylab.algorithms.stage.part_losses import PartLosses
from raylab.algorithms.stage.predictions import predictions
from raylab.algorithms.stage.settings import Tensors, Unit
from raylab.algorithms.stage.trained_by import check_loss_fn
from raylab.errors import ModelError

__all__ = ["StageLoss"]


class StageLoss:
    """The loss over the outputs of a stage's blocks.

    Args:
        loss_fn: (outputs, labels) -> mean loss over the samples, or their sum if its `reduction`
            says so, or one of torch's; None where the stage has none.
        blocks: of the stage.
        figures: of the stage; the losses are counted there.

    Raises:
        ModelError: the loss has parameters of its own to train.
    """

    def __init__(
        self, loss_fn: Callable[..., Tensor] | None, blocks: StageBlocks, figures: StageFigures
    ) -> None:
        check_loss_fn(loss_fn)
        self._terms = loss_terms(loss_fn).on(blocks.device)
        self._loss_fn = loss_fn
        self._blocks = blocks
        self._figures = figures
        self._late = LateLosses(blocks.device, lambda *each: figures.train.add(*each))
        self._parts = PartLosses(self._computed)

    @property
    def sums(self) -> bool:
        """Whether it is a sum over samples."""
        return self._terms.sums

    def of(self, outputs: Sequence[Tensor], labels: Tensors) -> Tensor:
        """Return the loss, (), and count nothing."""
        return self._computed(outputs, self._blocks.here(labels))

    def counted(self, unit: Unit, outputs: Sequence[Tensor], labels: Tensors) -> Tensor:
        """Return what a unit of training is to be differentiated of, (), and count its loss.

        Raises:
            ModelError: a batch's micro-batches do not add up to it.
            NonFiniteLossError: see `fetch`.
        """
        targets = self._blocks.here(labels)
        loss = self._computed(outputs, targets)
        # A sum over samples adds up over micro-batches as it is; a mean counts by its share.
        share = 1.0 if self.sums else unit.loss_share
        if not share:
            # All labels are ignored: a mean over nothing, of which the batch's has nothing.
            loss = sum(((t * 0).sum() for t in outputs), loss.new_zeros(()))
        if unit.parts > 1 and not self._terms.known:
            self._compare(unit, outputs, targets, loss, share)
        size = targets[0].shape[0]
        found = predictions(outputs[0].detach(), targets[0], self._terms)
        weight: Tensor | int
        if found is not None and self._terms.weighs_alike and targets[0].ndim == 1:
            weight = found.counted  # every label that is counted is a term of weight 1
        else:
            weight = self._terms.weight_of(targets, size)
        if not isinstance(weight, Tensor):
            # Filled where it is: a copy from the host would be a wait.
            weight = torch.full((), weight, device=loss.device)
        self._late.came(
            unit.batch,
            loss.detach(),
            size if self.sums else 1,
            size,
            *((None, weight) if found is None else (found.correct, weight, found.counted)),
        )
        return loss * share if unit.parts > 1 else loss

    def tested(self, outputs: Sequence[Tensor], labels: Tensors) -> None:
        """Count the loss of a test batch."""
        targets = self._blocks.here(labels)
        loss = self._computed(outputs, targets)
        size = targets[0].shape[0]
        found = predictions(outputs[0], targets[0], self._terms)
        self._figures.test.add(
            float(loss) / (size if self.sums else 1),
            size,
            None if found is None else int(found.correct),
            float(self._terms.weight_of(targets, size)),
            None if found is None else int(found.counted),
        )

    def fetch(self) -> None:
        """Count the losses that are still on the device.

        Raises:
            NonFiniteLossError: see `LateLosses`.
        """
        self._late.fetch()
        self._parts.check()

    def _compare(
        self,
        unit: Unit,
        outputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        loss: Tensor,
        share: float,
    ) -> None:
        last = unit.part + 1 == unit.parts
        self._parts.came(unit.batch, outputs, targets, loss, share=share, last=last)
        if last and unit.batch % self._late.every == 0:
            self._parts.check()

    def _computed(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        if self._loss_fn is None:
            raise ModelError("the last stage must be given a loss function, but got None")
        return self._loss_fn(packed(outputs), packed(targets)).reshape(())
