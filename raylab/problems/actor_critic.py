"""A policy and a value function, each a small network, in one vector of weights.

policy   4 ─▶ hidden ─▶ hidden ─▶ logits of 2 actions
value    4 ─▶ hidden ─▶ hidden ─▶ 1                            tanh in between
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ActorCritic"]


class ActorCritic:
    """Shapes of the networks; their weights come with each call.

    Args:
        inputs: numbers in an observation.
        actions: to choose from.
        hidden: units of each of the two hidden layers.
    """

    def __init__(self, inputs: int, actions: int, hidden: int = 64) -> None:
        self._networks = [(inputs, hidden, hidden, actions), (inputs, hidden, hidden, 1)]
        self._shapes = [
            shape
            for widths in self._networks
            for fan_in, fan_out in itertools.pairwise(widths)
            for shape in ((fan_out, fan_in), (fan_out,))
        ]
        self._sizes = [torch.Size(shape).numel() for shape in self._shapes]
        self.dim = sum(self._sizes)
        """Weights in all."""

    def initial(self, seed: int) -> Tensor:
        """Return weights to begin with, float32 (dim,): orthogonal, gain sqrt(2), biases 0; a
        hundredth of it in the last layer of the policy, so that all actions are equally probable.
        """
        generator = torch.Generator().manual_seed(seed)
        w = torch.zeros(self.dim)
        parts = self._parts(w)
        last = len(self._networks[0]) - 2
        for layer, weight in enumerate(parts[0::2]):
            gain = 0.01 if layer == last else 1.0 if layer == len(parts) // 2 - 1 else 2**0.5
            nn.init.orthogonal_(weight, gain, generator=generator)
        return w

    def policy(self, w: Tensor, observations: Tensor) -> Tensor:
        """Return the logits of every action, shape (rows, actions)."""
        parts = self._parts(w)
        return _forward(parts[: len(parts) // 2], observations)

    def value(self, w: Tensor, observations: Tensor) -> Tensor:
        """Return the return that is expected from each observation, shape (rows,)."""
        parts = self._parts(w)
        return _forward(parts[len(parts) // 2 :], observations)[:, 0]

    def _parts(self, w: Tensor) -> list[Tensor]:
        return [
            part.view(shape)
            for part, shape in zip(torch.split(w, self._sizes), self._shapes, strict=True)
        ]


def _forward(parts: list[Tensor], x: Tensor) -> Tensor:
    for index in range(0, len(parts) - 2, 2):
        x = torch.tanh(F.linear(x, parts[index], parts[index + 1]))
    return F.linear(x, parts[-2], parts[-1])
