"""Checks, before Ray starts, that what a user gives can be sent to the processes that use it."""

from __future__ import annotations

from typing import Any

from ray import cloudpickle

from raylab.drivers.batches import twin_of
from raylab.errors import ConfigError, DataError

__all__ = ["check_batches_travel", "check_travels"]


def check_batches_travel(name: str, batches: Any) -> None:
    """Check that batches can be sent.

    Args:
        name: of the argument.
        batches: re-iterable of (x, y), or None.

    Raises:
        DataError: they hold something that cannot be.
    """
    try:
        twin_of(batches)
    except Exception:
        _check(
            name,
            batches,
            DataError,
            "open files, connections and locks in __getitem__ or __iter__, or leave them out of "
            "__getstate__",
        )


def check_travels(**given: Any) -> None:
    """Check that callables can be sent.

    Args:
        given: by the names of the arguments.

    Raises:
        ConfigError: one holds something that cannot be.
    """
    for name, value in given.items():
        _check(name, value, ConfigError, "make what cannot be sent where it is called")


def _check(name: str, value: Any, kind: type[Exception], way_out: str) -> None:
    try:
        cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
    except Exception as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise kind(
            f"{name} must be something that can be sent to another process, but "
            f"{type(error).__name__}: {told}: {way_out}"
        ) from error
