"""Batch normalisation of a single value: there is no variance, and torch refuses it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from raylab.errors import ModelError

__all__ = ["WAY_OUT", "is_one_value", "one_value_told"]

WAY_OUT = (
    "take fewer micro_batches (gpipe, 1f1b), batches whose last one is not so small "
    "(another batch size, drop_last=True), or a normalisation of single samples (GroupNorm)"
)


def is_one_value(error: BaseException) -> bool:
    """Tell whether torch has refused to normalise a single value per channel."""
    return isinstance(error, ValueError) and "more than 1 value per channel" in str(error)


@contextlib.contextmanager
def one_value_told() -> Iterator[None]:
    """Say in a user's words what torch says of a single value.

    Raises:
        ModelError: in place of torch's error.
    """
    try:
        yield
    except ValueError as error:
        if not is_one_value(error):
            raise
        raise ModelError(
            "batch normalisation trains with more than one value per channel, but a batch or "
            f"micro-batch has a single sample: {WAY_OUT} ({error})"
        ) from error
