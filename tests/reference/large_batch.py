"""NAG, LARS and CLARS by their formulas, and samples' gradients by giving each sample its weights.

HUO, chapter 4. Nothing in here knows an identity: a layer runs sample by sample, each with a copy
of the weights of its own, and autograd says what the loss of the batch makes of each copy.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["clars_divisors", "layer_rate", "own_copies"]


def own_copies(module: nn.Module, samples: int) -> dict[str, Tensor]:
    """Give every sample a copy of the weights of all convolutions and linear layers, in place.

    Returns:
        By the parameter's name zeros, (samples, *shape), that are added to the copies: leaves
        whose gradients are those of the samples. Shared weights have one such leaf.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    copies: dict[str, Tensor] = {}
    for layer in module.modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        name = names[id(layer.weight)]
        if name not in copies:
            shape = (samples, *layer.weight.shape)
            copies[name] = torch.zeros(shape, dtype=layer.weight.dtype, requires_grad=True)
        layer.forward = functools.partial(_one_by_one, layer, copies[name])
    return copies


def _one_by_one(layer: nn.Module, copies: Tensor, x: Tensor) -> Tensor:
    parts = []
    for one, own in zip(x.split(1), copies, strict=True):
        weight = layer.weight + own
        if isinstance(layer, nn.Linear):
            parts.append(F.linear(one, weight, layer.bias))
        else:
            parts.append(layer._conv_forward(one, weight, layer.bias))
    return torch.cat(parts)


def clars_divisors(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum over samples of the norms of what each adds to the gradient.

    Under a loss that is a mean over B samples this is 1/B sum |∇_k f_i|, the divisor of (4.7).
    """
    return {name: each.flatten(1).norm(dim=1).sum() for name, each in found.items()}


def layer_rate(
    gamma: float, trust: float, weight: Tensor, divisor: Tensor, weight_decay: float
) -> Tensor:
    """Return gamma_k of (4.3) or (4.7)."""
    length = weight.norm()
    below = divisor + weight_decay * length
    return gamma * trust * length / below if below > 0 else torch.zeros_like(length)
