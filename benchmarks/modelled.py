"""Modelled compute: blocks that nap for the time that a stage would compute.

Napping stages share no processor, so what a pipeline loses against the ideal is what its messages
and its loops cost, on any machine. The whole product runs around them: autograd, weight versions,
optimiser, mailboxes, Ray actors.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

__all__ = ["BATCH", "NapStage", "mean_loss", "nap_batches", "nap_chain"]

BATCH = 128
WIDTH = 1024
"""128 x 1024 float32: 512 KB of features, and as much of gradients."""


class _Nap(torch.autograd.Function):
    @staticmethod
    def forward(  # the scale is there to have a gradient
        ctx: object,
        x: Tensor,
        scale: Tensor,  # noqa: ARG004
        forward_s: float,
        backward_s: float,
    ) -> Tensor:
        ctx.backward_s = backward_s  # type: ignore[attr-defined]
        time.sleep(forward_s * x.shape[0] / BATCH)
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        time.sleep(ctx.backward_s * gradient.shape[0] / BATCH)  # type: ignore[attr-defined]
        return gradient.clone(), gradient.new_ones(()), None, None


class NapStage(nn.Module):
    """One stage: naps of `forward_s` and `backward_s` seconds a batch of 128 samples."""

    def __init__(self, forward_s: float, backward_s: float) -> None:
        super().__init__()
        self.forward_s, self.backward_s = forward_s, backward_s
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x after a nap: (N, 1024) -> (N, 1024)."""
        return _Nap.apply(x, self.scale, self.forward_s, self.backward_s)


def nap_chain(times: list[tuple[float, float]]) -> nn.Sequential:
    """Return one block a stage, of (forward, backward) seconds."""
    return nn.Sequential(*(NapStage(*each) for each in times))


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001
    """Return the mean of the outputs: next to no work."""
    return outputs.mean()


class nap_batches:  # noqa: N801 - stands where a function would
    """`count` batches of zeros; a class, so that it travels to the actor without its content."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> object:
        x, y = torch.zeros(BATCH, WIDTH), torch.zeros(BATCH)
        return iter([(x, y)] * self.count)
