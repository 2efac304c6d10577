"""The loss of a stage: computed, counted, and checked to be finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from raylab.algorithms.stage.blocks import StageBlocks
from raylab.algorithms.stage.figures import StageFigures, correct_predictions
from raylab.algorithms.stage.late_losses import LateLosses
from raylab.algorithms.stage.packing import packed
from raylab.algorithms.stage.settings import Tensors, Unit
from raylab.algorithms.stage.trained_by import check_loss_fn
from raylab.errors import ModelError

__all__ = ["StageLoss"]


class StageLoss:
    """The loss over the outputs of a stage's blocks.

    Args:
        loss_fn: (outputs, labels) -> mean loss over the samples, or their sum if its `reduction`
            says so; None where the stage has none.
        blocks: of the stage.
        figures: of the stage; the losses are counted there.

    Raises:
        ModelError: the loss has parameters of its own to train.
    """

    def __init__(
        self, loss_fn: Callable[..., Tensor] | None, blocks: StageBlocks, figures: StageFigures
    ) -> None:
        check_loss_fn(loss_fn)
        self.sums = getattr(loss_fn, "reduction", "mean") == "sum"
        """Whether it is a sum over samples."""
        self._loss_fn = loss_fn
        self._blocks = blocks
        self._figures = figures
        self._late = LateLosses(blocks.device, lambda *each: figures.train.add(*each))

    def of(self, outputs: Sequence[Tensor], labels: Tensors) -> Tensor:
        """Return the loss, (), and count nothing."""
        return self._computed(outputs, self._blocks.here(labels))

    def counted(self, unit: Unit, outputs: Sequence[Tensor], labels: Tensors) -> Tensor:
        """Return what a unit of training is to be differentiated of, (), and count its loss.

        Raises:
            NonFiniteLossError: see `fetch`.
        """
        targets = self._blocks.here(labels)
        loss = self._computed(outputs, targets)
        size = targets[0].shape[0]
        correct = correct_predictions(outputs[0].detach(), targets[0])
        self._late.came(unit.batch, loss.detach(), size if self.sums else 1, size, correct)
        # A sum over samples adds up over micro-batches as it is; a mean counts by its share.
        return loss if self.sums else loss * unit.share

    def tested(self, outputs: Sequence[Tensor], labels: Tensors) -> None:
        """Count the loss of a test batch."""
        targets = self._blocks.here(labels)
        loss = self._computed(outputs, targets)
        size = targets[0].shape[0]
        correct = correct_predictions(outputs[0], targets[0])
        self._figures.test.add(
            float(loss) / (size if self.sums else 1),
            size,
            None if correct is None else int(correct),
        )

    def fetch(self) -> None:
        """Count the losses that are still on the device.

        Raises:
            NonFiniteLossError: one is NaN or infinite.
        """
        self._late.fetch()

    def _computed(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        if self._loss_fn is None:
            raise ModelError("the last stage must be given a loss function, but got None")
        return self._loss_fn(packed(outputs), packed(targets)).reshape(())
