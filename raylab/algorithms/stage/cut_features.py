"""What passes over a cut, for the small networks that some methods put there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

__all__ = ["CutFeatures", "companion"]

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutFeatures:
    """The features at one cut, and what the network makes of them in the end.

    Args:
        channels: of features (N, channels) or (N, channels, height, width).
        image: whether they have height and width.
        classes: outputs of the network's last block, (N, classes).
        dtype: of the features.
    """

    channels: int
    image: bool
    classes: int
    dtype: torch.dtype


def companion(make: Callable[[CutFeatures], Module], cut: CutFeatures, key: int) -> Module:
    """Return `make(cut)` in the features' dtype, drawn from `key` and from nothing else.

    A companion lives beside its stage: it is trained there, and is no part of the user's model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        return make(cut).to(cut.dtype)
