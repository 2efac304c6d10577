"""What a user hands over as batches, before it matters what trains with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raylab.errors import DataError

__all__ = ["batches_of", "first_of"]


def batches_of(batches: Iterable[Any]) -> int | None:
    """Return how many batches an epoch has; None: they do not say."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def first_of(batches: Iterable[Any]) -> Any:
    """Return the first batch, whatever it is.

    Raises:
        DataError: there is none, or there can be no second time.
    """
    if not isinstance(batches, Iterable):
        raise DataError(f"batches must be iterable, but got {type(batches).__name__}")
    iterator = iter(batches)
    if iterator is batches:
        raise DataError(
            "batches must give a new iterator every time, but got a one-shot iterator "
            f"({type(batches).__name__}): give a list, a DataLoader or an object with __iter__"
        )
    for batch in iterator:
        return batch
    raise DataError("batches must not be empty, but there is not one")
