"""The weights at which a batch was forwarded, kept until its gradient has been computed.

(5.6) of HUO and (15) of ADL differentiate at the weights of the old forward. An autograd graph
refers to the parameter itself, so a later in-place step would raise, or silently use the new
weights. A forward therefore runs on leaf tensors that share the parameters' memory, each with a
version counter of its own. Two ways on from there, both exact on convolutions:

    forward   before an update the parameters move to a copy, and leave their memory to the graphs
              that use it: one copy per window of updates, shared by its batches and freed with the
              last graph (the equations)
    current   the parameters stay: the backward reads whatever the weights are by then, beside
              activations of the old forward (what PipeDream without stashing and the authors' code
              do)

What a forward writes into a weight (`Embedding(max_norm=...)`, a renormalisation, a clamp) is in
the parameter either way, because it is the same memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn

from raylab.algorithms.stage.memory import bytes_of

__all__ = ["WeightVersion", "WeightVersions"]

WeightVersion = Literal["forward", "current"]


class WeightVersions:
    """Hand out the weights for a forward whose backward comes after updates.

    Args:
        module: the stage; its parameters are the weights of now.
        keep: which weights a backward reads, see the module's docstring.
    """

    def __init__(self, module: nn.Module, keep: WeightVersion) -> None:
        self._named = dict(module.named_parameters())
        self._keep = keep
        self._bytes = bytes_of(self._named.values())
        self._current: dict[str, Tensor] | None = None
        self._copies: dict[str, Tensor] | None = None
        self._written = False

    def copies(self) -> dict[str, Tensor]:
        """Return the weights of now as copies, shared by all who ask before the next update.

        A graph of "current" weights reads whatever they are by then; only with these can it be
        grown again as it was.
        """
        if self._keep == "forward":
            return self.now()
        if self._copies is None:
            self._copies = {name: p.detach().clone() for name, p in self._named.items()}
        return self._copies

    def bytes(self, old: int) -> int:
        """Return the bytes of all copies beside the parameters.

        Args:
            old: versions before that of now which an open batch holds a copy of.
        """
        return (old + bool(self._copies)) * self._bytes

    def now(self) -> dict[str, Tensor]:
        """Return leaf tensors with the weights of now, by parameter name."""
        if self._written:
            # A forward has written into them: another one's writes would spoil its graph.
            self.part()
            self._current = None
        if self._current is None:
            self._current = {
                name: p.data.requires_grad_(p.requires_grad) for name, p in self._named.items()
            }
        return self._current

    def ran(self, weights: Iterable[Tensor]) -> None:
        """Take note of a forward: it may have written into the weights that it was handed."""
        # Reading a counter a weight is all that a forward which does not write costs.
        if any(weight._version for weight in weights):
            self._written = True

    def part(self) -> None:
        """Leave the memory of the weights of now to those that hold them: a write is next."""
        if self._keep == "forward" and self._current is not None:
            for p in self._named.values():
                if p.requires_grad:
                    p.data = p.detach().clone()

    def updated(self) -> None:
        """The parameters have changed: the next forward needs another version."""
        self._copies = None
        self._written = False
        if self._keep == "forward":
            self._current = None
