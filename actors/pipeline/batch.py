"""What a batch is: a pair (x, y) of tensors with the same number of samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from actors.errors import BatchError

__all__ = ["as_tensors"]


def as_tensors(pair: Any, where: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return x and y of a batch as tuples of tensors.

    Raises:
        BatchError: `pair` is not (x, y) of tensors with the same number of samples, at least one.
    """
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise BatchError(f"a batch must be a pair (x, y), but {where} is {_kind(pair)}")
    sides = []
    for name, side in zip(("x", "y"), pair, strict=True):
        tensors = tuple(side) if isinstance(side, (tuple, list)) else (side,)
        if not tensors or not all(isinstance(t, Tensor) for t in tensors):
            raise BatchError(
                f"x and y of a batch must be tensors, but {name} of {where} is {_kind(side)}"
            )
        sides.append(tensors)
    x, y = sides
    sizes = {t.shape[0] if t.ndim else 0 for t in (*x, *y)}
    if len(sizes) != 1 or 0 in sizes:
        shapes = [tuple(t.shape) for t in (*x, *y)]
        raise BatchError(
            f"x and y of a batch must have the same number of samples, at least one, "
            f"but {where} has the shapes {shapes}"
        )
    return x, y


def _kind(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: {[type(v).__name__ for v in value]}"
    return f"a {type(value).__name__}"
