"""What a layer's parameters have to do with each sample, for the layers that torch has.

Everywhere dimension 0 of what goes in and comes out are the samples. Under batch normalisation a
sample's gradient is the one with respect to *its own copy* of the weights: of the layers below,
what autograd brings back to the sample's activations, through the statistics, too; of the
normalisation's own weights with the statistics as constants, which they do not depend on. So the
samples' gradients add up to the batch's, and their mean norm is never below the norm of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from raylab.errors import ModelError
from raylab.optimizers.sample_gradients import (
    ConvGeometry,
    ConvUse,
    DirectUse,
    FactorUse,
    LookupUse,
    Use,
)

__all__ = ["IDENTITY_NAMES", "Identity", "identity_of", "padded"]

Statistics = Mapping[str, Tensor | None]

IDENTITY_NAMES = (
    "Linear, Conv1d, Conv2d, Conv3d, Embedding, LayerNorm, RMSNorm, GroupNorm, BatchNorm1d, "
    "BatchNorm2d, BatchNorm3d"
)


class Identity(Protocol):
    """How the samples' gradients of one layer's parameters follow from what it sees."""

    def __call__(self, name: str, x: Tensor, g: Tensor, rows: slice) -> Use:
        """Return the use of a parameter in one call of the layer.

        Args:
            name: of the parameter in its layer: weight or bias.
            x: the layer's input, (B, ...).
            g: the gradient at its output, (B, ...).
            rows: the samples that are asked for.
        """
        ...


def identity_of(module: nn.Module) -> Callable[[nn.Module], Identity] | None:
    """Return what makes a layer's identity when it is called; None if it has none.

    A layer is known by its forward, so that a subclass with one of its own is not taken for it.
    """
    for kinds, make in _LAYERS.items():
        if isinstance(module, kinds) and _is_own(module, kinds):
            return None if getattr(module, "scale_grad_by_freq", False) else make
    return None


def _is_own(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return any(
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and getattr(type(module), "_conv_forward", None) is getattr(kind, "_conv_forward", None)
        for kind in kinds
    )


# --- the layers ---------------------------------------------------------------------------------


def _linear(_: nn.Module) -> Identity:
    def use(name: str, x: Tensor, g: Tensor, rows: slice) -> Use:
        x, g = _floats(x[rows], g[rows])
        left = g.reshape(len(g), 1, -1, g.shape[-1])
        if name == "bias":
            return DirectUse(left.sum((1, 2)))
        return FactorUse(left, x.reshape(len(x), 1, -1, x.shape[-1]))

    return use


def _convolution(module: nn.Module) -> Identity:
    conv = cast(_ConvNd, module)

    def use(name: str, x: Tensor, g: Tensor, rows: slice) -> Use:
        x, g = _floats(x[rows], g[rows])
        if name == "bias":
            return DirectUse(g.flatten(2).sum(2))
        x, geometry = padded(conv, x)
        return ConvUse(x, g, geometry)

    return use


def padded(conv: _ConvNd, x: Tensor) -> tuple[Tensor, ConvGeometry]:
    """Return a convolution's input with all padding but zeros, and what is done to it then.

    Raises:
        ModelError: the input is no batch.
    """
    width = len(conv.kernel_size)
    if x.ndim != width + 2:
        raise ModelError(
            f"a convolution must be given a batch of samples, but got {tuple(x.shape)}"
        )
    padding: Any = conv.padding
    if isinstance(padding, str) or conv.padding_mode != "zeros":
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode)
        padding = (0,) * width
    geometry = ConvGeometry(
        kernel=tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        padding=tuple(padding),
        dilation=tuple(conv.dilation),
        groups=conv.groups,
    )
    return x, geometry


def _embedding(module: nn.Module) -> Identity:
    table = cast(nn.Embedding, module)

    def use(name: str, x: Tensor, g: Tensor, rows: slice) -> Use:  # noqa: ARG001 - weight
        (g,) = _floats(g[rows])
        index = x[rows].reshape(len(g), -1)
        g = g.reshape(*index.shape, -1)
        if table.padding_idx is not None:
            g = g * (index != table.padding_idx).unsqueeze(2)
        return LookupUse(index, g, table.num_embeddings)

    return use


def _normalisation(
    normalised: Callable[[nn.Module, Statistics, Tensor], Tensor], *, channels: bool
) -> Callable[[nn.Module], Identity]:
    """Return the identity of x̂·weight + bias.

    Args:
        normalised: makes x̂.
        channels: whether a weight belongs to a channel; False: to a place of the last dimensions.
    """

    def make(module: nn.Module) -> Identity:
        # Those of this call: they may be copies that stand in for the module's own.
        names = ("running_mean", "running_var")
        kept: Statistics = {name: getattr(module, name, None) for name in names}
        if module.training:
            kept = {}

        def use(name: str, x: Tensor, g: Tensor, rows: slice) -> Use:
            if name == "weight":
                x, g = _floats(x, g)
                g = (normalised(module, kept, x) * g)[rows]
            else:
                (g,) = _floats(g[rows])
            if channels:
                return DirectUse(g.flatten(2).sum(2) if g.ndim > 2 else g)
            own = len(cast(nn.LayerNorm, module).normalized_shape)
            return DirectUse(g.flatten(1, -own - 1).sum(1) if g.ndim > own + 1 else g)

        return use

    return make


def _batch_normalised(module: nn.Module, kept: Statistics, x: Tensor) -> Tensor:
    mean, var = kept.get("running_mean"), kept.get("running_var")
    eps = cast(_BatchNorm, module).eps
    return F.batch_norm(x, mean, var, training=mean is None, eps=eps)


def _layer_normalised(module: nn.Module, _: Statistics, x: Tensor) -> Tensor:
    norm = cast(nn.LayerNorm, module)
    return F.layer_norm(x, list(norm.normalized_shape), eps=norm.eps)


def _rms_normalised(module: nn.Module, _: Statistics, x: Tensor) -> Tensor:
    norm = cast(nn.RMSNorm, module)
    return F.rms_norm(x, list(norm.normalized_shape), eps=norm.eps)


def _group_normalised(module: nn.Module, _: Statistics, x: Tensor) -> Tensor:
    norm = cast(nn.GroupNorm, module)
    return F.group_norm(x, norm.num_groups, eps=norm.eps)


def _floats(*tensors: Tensor) -> list[Tensor]:
    """Return tensors in one dtype in which squares can be added up."""
    dtype = torch.promote_types(tensors[0].dtype, tensors[-1].dtype)
    if dtype in (torch.bfloat16, torch.float16):
        dtype = torch.float32
    return [t.to(dtype) for t in tensors]


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LAYERS: dict[tuple[type[nn.Module], ...], Callable[[nn.Module], Identity]] = {
    (nn.Linear,): _linear,
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): _convolution,
    (nn.Embedding,): _embedding,
    (nn.LayerNorm,): _normalisation(_layer_normalised, channels=False),
    (nn.RMSNorm,): _normalisation(_rms_normalised, channels=False),
    (nn.GroupNorm,): _normalisation(_group_normalised, channels=True),
    _BATCH_NORMS: _normalisation(_batch_normalised, channels=True),
}
