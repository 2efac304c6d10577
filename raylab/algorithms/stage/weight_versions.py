"""The weights at which a batch was forwarded, kept until its gradient has been computed.

(5.6) of HUO and (15) of ADL differentiate at the weights of the old forward. An autograd graph
refers to the parameter itself, so a later in-place step would raise, or silently use the new
weights. Two ways out, both exact on convolutions:

    forward   a copy of the weights per window of updates, shared by its batches and freed with the
              last graph that uses it (the equations)
    current   an alias of the parameters' memory with a version counter of its own: the backward
              reads whatever the weights are by then, beside activations of the old forward (what
              PipeDream without stashing and the authors' code do)
"""

from __future__ import annotations

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
        copies = self._copies or (self._current if self._keep == "forward" else None)
        return (old + bool(copies)) * self._bytes

    def now(self) -> dict[str, Tensor]:
        """Return leaf tensors with the weights of now, by parameter name."""
        if self._current is None:
            self._current = {
                name: (p.detach().clone() if self._keep == "forward" else p.data).requires_grad_(
                    p.requires_grad
                )
                for name, p in self._named.items()
            }
        return self._current

    def updated(self) -> None:
        """The parameters have changed: the next forward needs another version."""
        self._copies = None
        if self._keep == "forward":
            self._current = None
