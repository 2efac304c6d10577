"""The modelled network: one flat parameter, and naps where a real one would compute.

A nap costs no processor time, so what a benchmark on a small machine measures is the network and
who waits for it, and not how computing and sending share the cores. No raylab in here: peers whose
interpreter has none train the same.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FORWARD_SHARE", "FlatModel", "batch", "loss"]

FORWARD_SHARE = 1 / 3
"""Of a step; a backward takes about twice as long."""


class _Napping(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, step_s: float) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.step_s = step_s
        time.sleep(FORWARD_SHARE * step_s)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (weights,) = ctx.saved_tensors
        time.sleep((1 - FORWARD_SHARE) * ctx.step_s)
        return gradients[0], torch.full_like(weights, 1e-3), None


class FlatModel(nn.Module):
    """One parameter, or as many layers as a peer wants to have them.

    Args:
        megabytes: of all, in float32.
        step_s: of forward and backward together, seconds.
        layers: of one parameter each.
    """

    def __init__(self, megabytes: float, step_s: float, layers: int = 1) -> None:
        super().__init__()
        each = max(1, round(megabytes * 1e6 / 4 / layers))
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(each)) for _ in range(layers))
        self._layer_s = step_s / layers

    def forward(self, x: Tensor) -> Tensor:
        """Nap, and return x."""
        for weights in self.weights:
            x = _Napping.apply(x, weights, self._layer_s)  # type: ignore[no-untyped-call]
        return x


def batch() -> tuple[Tensor, Tensor]:
    """Return inputs and labels, which nobody looks at."""
    return torch.zeros(1), torch.zeros(1)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Return their mean difference."""
    return (output - target).mean()
