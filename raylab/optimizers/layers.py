"""Which parameters are layers with a rate of their own, and which go by the common one.

Told by what a parameter *is* to its module, never by what it is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

__all__ = ["fully_connected_parameters", "plain_parameters"]

_NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_BIASED = (nn.Linear, nn.Bilinear, _ConvNd)


def plain_parameters(*models: nn.Module, exclude: Sequence[str] = ()) -> list[nn.Parameter]:
    """Return the parameters that layer-wise scaling leaves out.

    They are the biases of torch's layers, all of normalisations, every other parameter that is a
    single vector or number, and all of what `exclude` names. A parameter that is shared is left
    out if one of its owners says so.

    Args:
        models: to walk through.
        exclude: class names of modules, such as MultiheadAttention, with all that is in them.

    >>> [p.shape for p in plain_parameters(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)))]
    [torch.Size([2]), torch.Size([2]), torch.Size([2])]
    """
    found: dict[int, nn.Parameter] = {}
    for model in models:
        for module in model.modules():
            for p in _plain_of(module, exclude):
                found[id(p)] = p
    return list(found.values())


def _plain_of(module: nn.Module, exclude: Sequence[str]) -> Iterator[nn.Parameter]:
    if type(module).__name__ in exclude:
        yield from module.parameters()
    elif isinstance(module, _NORMALISATIONS):
        yield from module.parameters(recurse=False)
    else:
        bias = getattr(module, "bias", None) if isinstance(module, _BIASED) else None
        yield from (p for p in module.parameters(recurse=False) if p is bias or p.ndim <= 1)


def fully_connected_parameters(*models: nn.Module) -> list[nn.Parameter]:
    """Return weights and biases of all linear layers, which FC-freeze keeps still at first."""
    layers = [m for model in models for m in model.modules() if isinstance(m, nn.Linear)]
    return list({id(p): p for layer in layers for p in layer.parameters(recurse=False)}.values())
