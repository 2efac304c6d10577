"""Per-sample gradients of convolutions, see `sample_gradients`.

kernel   torch's own, with the samples as groups: the gradients themselves
unfold   the image as a matrix of places, for Gram matrices, and for GPUs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from raylab.optimizers.sample_gradients import (
    FactorUse,
    Use,
    chunked,
    gram_is_cheaper,
    squared_norms,
)

__all__ = ["ConvGeometry", "ConvUse"]

_CACHED = 1 << 19
"""Numbers of images and gradients that a CPU has in its cache while it goes from one to the other:
2 MiB. Kernels are up to three times as fast as with a batch of 64 at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvGeometry:
    """What a convolution does beside its weights; numbers per dimension of space.

    Args:
        kernel: size of the kernel.
        stride: see torch.
        padding: zeros at both ends; other paddings are in the input already.
        dilation: see torch.
        groups: of channels.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def by_gram(self, shape: Sequence[int], channels: int) -> bool:
        """Return whether Gram matrices of the places are the cheaper way to the norms.

        Args:
            shape: of the input, (B, C, *space).
            channels: O.
        """
        each = zip(shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        places = math.prod((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each)
        q = shape[1] // self.groups * math.prod(self.kernel)
        # What unfolds an image for them has two dimensions.
        return len(self.kernel) <= 2 and gram_is_cheaper(places, channels // self.groups, q)


@dataclass(frozen=True, slots=True)
class ConvUse(Use):
    """A convolution's weights at every place of the image.

    Args:
        inputs: (B, C, *space), padded where zeros do not do.
        gradient: (B, O, *places).
        geometry: of the convolution.
    """

    inputs: Tensor
    gradient: Tensor
    geometry: ConvGeometry

    @property
    def samples(self) -> int:
        """Return B."""
        return self.inputs.shape[0]

    @property
    def size(self) -> int:
        """Return the numbers of one sample's gradient."""
        p, q = self._widths()
        return self.geometry.groups * p * q

    def explicit(self, rows: slice) -> Tensor:
        """Return the gradients of some samples, (b, size)."""
        if self.inputs.device.type != "cpu" and self._unfolds():
            return self._factors(rows).explicit(slice(None))
        # On a CPU nothing is faster than torch's own kernel with the samples as groups: it makes
        # no copy of the image per place of the kernel.
        x, g, shape = self.inputs[rows], self.gradient[rows], self.geometry
        count = len(x)
        # Of the weight it wants to know the layout alone, which an expanded one has not.
        weight = x.new_empty(count * g.shape[1], x.shape[1] // shape.groups, *shape.kernel)
        found = torch.ops.aten.convolution_backward(
            g.reshape(1, -1, *g.shape[2:]),
            x.reshape(1, -1, *x.shape[2:]),
            weight,
            None,
            shape.stride,
            shape.padding,
            shape.dilation,
            False,
            [0] * len(shape.kernel),
            count * shape.groups,
            [False, True, False],
        )[1]
        weights: Tensor = found.reshape(count, -1)
        return weights

    def squares(self) -> Tensor:
        """Return the squared norm of every sample's gradient, (B,)."""
        if self.geometry.by_gram(self.inputs.shape, self.gradient.shape[1]):
            places, q = self.gradient[0, 0].numel(), self._widths()[1]
            per_sample = self.geometry.groups * places * (places + q)
            return chunked(self.samples, per_sample, lambda rows: self._factors(rows).squares())
        return self._chunked(lambda rows: squared_norms(self.explicit(rows)))

    def squares_and_sum(self) -> tuple[Tensor, Tensor]:
        """Return the squared norms, (B,), and the sum of all samples' gradients, (size,)."""
        total = self.inputs.new_zeros(self.size)

        def squares(rows: slice) -> Tensor:
            gradients = self.explicit(rows)
            total.add_(gradients.sum(0))
            return squared_norms(gradients)

        return self._chunked(squares), total

    def _chunked(self, squares: Callable[[slice], Tensor]) -> Tensor:
        """Return `squares` of all samples, which compute the gradients of as many at a time as are
        fastest.
        """
        if self.inputs.device.type != "cpu":
            return chunked(self.samples, self.size, squares)
        images = self.inputs[:1].numel() + self.gradient[:1].numel()
        return chunked(self.samples, images + self.size, squares, _CACHED)

    def _widths(self) -> tuple[int, int]:
        """Return p and q of the factors."""
        groups, kernel = self.geometry.groups, math.prod(self.geometry.kernel)
        return self.gradient.shape[1] // groups, self.inputs.shape[1] // groups * kernel

    def _unfolds(self) -> bool:
        return len(self.geometry.kernel) <= 2

    def _factors(self, rows: slice) -> FactorUse:
        """Return the convolution as a product with the image unfolded."""
        x, g, shape = self.inputs[rows], self.gradient[rows].flatten(2), self.geometry
        kernel, stride = shape.kernel, shape.stride
        padding, dilation = shape.padding, shape.dilation
        if len(kernel) == 1:
            x = x.unsqueeze(2)
            kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
            padding = (0, *padding)
        unfolded = F.unfold(x, kernel, dilation, padding, stride)
        grouped = (len(x), shape.groups, -1, g.shape[2])
        return FactorUse(g.reshape(grouped).mT, unfolded.reshape(grouped).mT)
