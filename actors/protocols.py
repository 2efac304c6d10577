"""What the mechanism needs from whoever uses it. An algorithm satisfies these structurally.

A *unit* is the piece of work that travels through the pipeline: one batch, or one micro-batch of
a batch. Stages are numbered from 0 at the input to K-1 at the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

__all__ = ["StageRule", "Tensors", "Unit"]

Tensors = tuple[Tensor | None, ...]
"""What crosses a cut: one tensor or several; None stands for "no gradient for this one"."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One batch, or one micro-batch of it.

    Args:
        batch: index n of the batch, counted from 0 over all epochs.
        part: index of the micro-batch in the batch.
        parts: micro-batches that the batch has.
        share: samples of this unit as a share of the batch's, in (0, 1].
    """

    batch: int
    part: int = 0
    parts: int = 1
    share: float = 1.0


class StageRule(Protocol):
    """The computation of one stage. Called by one thread, in the order of the stage's loop."""

    def forward(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute the features of `unit`; at the last stage, its loss from `labels`."""
        ...

    def backward(self, unit: Unit, gradients: Tensors) -> Tensors:
        """Back-propagate; return the error gradients at the stage's inputs."""
        ...

    def correct(self, unit: Unit, gradients: Tensors) -> None:
        """Learn from the error gradient of a unit whose backward did without it.

        Called only where the program's `feedback` is "target".
        """
        ...

    def recheck(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute the features of a batch anew, changing nothing; labels as in `forward`."""
        ...

    def compare(self, unit: Unit, gradients: Tensors, *, due: bool) -> Tensors:
        """Back-propagate a recheck at the same weights; return the gradients at its inputs.

        `due`: the next backward of this stage is of the same batch.
        """
        ...

    def update(self) -> None:
        """Close a window: apply the mean gradient of its batches, zero where there were none."""
        ...

    def evaluate(self, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute the features of a test batch with the weights of now, changing nothing."""
        ...

    def report(self) -> Mapping[str, Any]:
        """Return the figures since the last report, and start new ones."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """Return the weights and buffers of the stage, on the CPU."""
        ...

    def save(self) -> Mapping[str, Any]:
        """Return all that the stage is between two units: tensors nobody will write to, numbers
        and text, in dictionaries and lists.
        """
        ...

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned: what is computed from now on is bit for bit the same."""
        ...

    def measure(self, inputs: Tensors, repeats: int) -> Sequence[tuple[float, float]]:
        """Time forward and backward on `inputs`, in seconds, leaving no trace in the state."""
        ...
