"""What a pipeline needs from whoever uses it. An algorithm satisfies it structurally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from actors.units import Tensors, Unit

__all__ = ["StageRule"]


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

    def state(self) -> Mapping[str, Any]:
        """Return the state_dict of the stage, on the CPU."""
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
