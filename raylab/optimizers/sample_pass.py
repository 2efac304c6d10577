"""The samples of one backward pass: their gradients' norms, layer by layer, as they arrive."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raylab.errors import ModelError
from raylab.optimizers.sample_gradients import Use, squares_of

__all__ = ["SamplePass"]


class SamplePass:
    """The uses of every layer in the forwards that one backward pass goes through.

    A layer's norms are computed, and what they are made of is freed, as soon as its last use has
    arrived. Gradients are those of the loss that is differentiated: a mean over B samples brings
    each of them a B-th of its own.

    Args:
        names: of the layers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.samples = 0
        """That came back, whether they are taken or not."""
        self.taken = 0
        self.begun = False
        """Whether a gradient has come back."""
        self._names = names
        self._expected = [0] * len(names)
        self._arrived: dict[int, list[Use]] = {}
        self._squares: dict[int, Tensor] = {}

    def expect(self, layer: int) -> None:
        """A layer has been called."""
        self._expected[layer] += 1

    def rows(self, x: Tensor, module: str, limit: int | None) -> slice:
        """Return which samples of a layer's input are asked for.

        Args:
            x: the input.
            module: whose it is.
            limit: samples to take of the pass, the first ones; None: all.

        Raises:
            ModelError: the input has another number of samples than those of the other layers.
        """
        count = len(x)
        if not self.begun:
            self.begun = True
            self.samples = count
            self.taken = count if limit is None else min(count, limit)
        if count != self.samples:
            raise ModelError(
                f"dimension 0 of every layer's input must be the samples, but {module} saw "
                f"{count} of them and another layer {self.samples} in one backward pass: put the "
                "samples first, or exclude the layer"
            )
        return slice(0, self.taken)

    def arrived(self, layer: int, use: Use) -> None:
        """Take the gradient of one use of a layer.

        Raises:
            ModelError: the layer's norms have been computed already.
        """
        if layer in self._squares:
            raise ModelError(
                f"the samples' gradients of {self._names[layer]} must come back once, but a second "
                "backward pass went through the same forward: add the losses and call backward once"
            )
        uses = self._arrived.setdefault(layer, [])
        uses.append(use)
        if len(uses) == self._expected[layer]:
            self._compute(layer)

    def once(self, layer: int) -> bool:
        """Return whether a layer has been called once, and its norms are still missing."""
        return self._expected[layer] == 1 and layer not in self._squares

    def computed(self, layer: int, squares: Tensor) -> None:
        """Take the squared norms of a layer that has been called once."""
        self._squares[layer] = squares

    def close(self) -> None:
        """No more gradients come: compute the norms of layers whose other uses had none."""
        for layer in list(self._arrived):
            self._compute(layer)

    def squares(self, layer: int) -> Tensor | None:
        """Return the squared norms of the taken samples' gradients, None if none came back."""
        return self._squares.get(layer)

    @torch.no_grad()
    def _compute(self, layer: int) -> None:
        self._squares[layer] = squares_of(self._arrived.pop(layer))
