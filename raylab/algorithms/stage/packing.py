"""What goes into a block and comes out of it: one tensor, or a tuple of them as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from raylab.errors import ModelError

__all__ = ["as_list", "packed"]


def packed(tensors: Sequence[Tensor]) -> Any:
    """Return what a block is called with, as in nn.Sequential: a tensor, or a tuple as one."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def as_list(outputs: Any) -> list[Tensor]:
    """Return what a block returned as a list.

    Raises:
        ModelError: it is something else than a tensor or a tuple of tensors.
    """
    tensors: list[Any] = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    others = [type(t).__name__ for t in tensors if not isinstance(t, Tensor)]
    if others or not tensors:
        raise ModelError(f"a block must return a tensor or a tuple of tensors, but got {others}")
    return tensors
