"""Small float64 chains of blocks, and batches for them, to test pipeline methods with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["CLASSES", "ConvBlock", "Residual", "batches", "conv_bn64", "mlp64"]

CLASSES = 4
_FEATURES = 6  # of the perceptron's input
_IMAGE = (2, 8, 8)  # channels, height, width


class ConvBlock(nn.Sequential):
    """Convolution, batch normalisation and ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, bias: bool = False) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )


class Residual(nn.Module):
    """Two convolutions with a skip connection around them; the skip makes it one block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def mlp64(seed: int = 0, *, blocks: int = 9, width: int = 7) -> nn.Sequential:
    """Return `blocks` blocks, Linear + Tanh each but the last, which is Linear alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = [_FEATURES] + [width] * (blocks - 1)
        hidden = [nn.Sequential(nn.Linear(i, width), nn.Tanh()) for i in widths[:-1]]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], CLASSES)).double()


def conv_bn64(seed: int = 0) -> nn.Sequential:
    """Return nine blocks for 8x8 images: convolutions with BN, a skip, pooling, linear layers.

    Blocks 3 and 6 have no parameters, so that some cuts give a stage without any.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            ConvBlock(_IMAGE[0], 4),
            Residual(4),
            ConvBlock(4, 5, bias=True),
            nn.AvgPool2d(2),
            Residual(5),
            ConvBlock(5, 6),
            nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            nn.Sequential(nn.Linear(24, 8), nn.Tanh()),
            nn.Linear(8, CLASSES),
        ).double()


def batches(
    kind: Literal["mlp", "conv"], count: int, size: int = 8, ragged: bool = False, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Return `count` batches (x, y) of normal inputs and class labels.

    With `ragged` the last batch has size // 2 + 1 samples: 5 of 8, which four micro-batches share
    as 2 + 2 + 1.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (_FEATURES,) if kind == "mlp" else _IMAGE
    sizes = [size] * count
    if ragged:
        sizes[-1] = size // 2 + 1
    return [
        (
            torch.randn(n, *shape, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (n,), generator=generator),
        )
        for n in sizes
    ]
