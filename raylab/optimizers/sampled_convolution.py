"""A convolution whose backward pass adds its weights' gradient up from the samples' own ones.

Where these are computed anyway, the batch's gradient is their sum: a kernel fewer, so that their
norms cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raylab.optimizers.convolution_samples import ConvGeometry, ConvUse
from raylab.optimizers.sample_pass import SamplePass

__all__ = ["SampledConvolution"]


class SampledConvolution(torch.autograd.Function):
    """torch's convolution of float tensors, (x, weight, bias) -> (B, O, *places)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        layer: int,
        current: SamplePass,
        asked: Callable[[Tensor], slice],
    ) -> Tensor:
        """Convolve.

        Args:
            ctx: autograd's.
            x: (B, C, *space), padded where zeros do not do.
            weight: of the convolution.
            bias: of the convolution.
            geometry: of the convolution.
            layer: that the weight is, in `current`.
            current: takes the norms.
            asked: which samples of x norms are taken of.
        """
        ctx.save_for_backward(x, weight)
        ctx.given = (geometry, layer, current, asked)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        found: Tensor = torch.ops.aten.convolution(x, weight, bias, *_numbers(geometry))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients at x, weight and bias."""
        x, weight = ctx.saved_tensors
        geometry, layer, current, asked = ctx.given
        rows = asked(x)
        total = None
        if current.once(layer) and current.taken == len(x):
            squares, total = ConvUse(x, gradient, geometry).squares_and_sum()
            current.computed(layer, squares)
        elif current.taken:
            current.arrived(layer, ConvUse(x[rows], gradient[rows], geometry))
        at_x, _, at_bias, *_ = ctx.needs_input_grad
        found = torch.ops.aten.convolution_backward(
            gradient, x, weight, ctx.bias_sizes, *_numbers(geometry), [at_x, total is None, at_bias]
        )
        at_weight = found[1] if total is None else total.reshape(weight.shape)
        return found[0], at_weight, found[2], None, None, None, None


def _numbers(geometry: ConvGeometry) -> tuple[Any, ...]:
    """Return what torch's own convolution takes after the bias."""
    return (
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0] * len(geometry.kernel),
        geometry.groups,
    )
