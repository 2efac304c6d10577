"""Errors of a user's code, put so that they come back from an actor."""

from __future__ import annotations

import traceback
from typing import TypeVar

__all__ = ["describe_error", "with_traceback"]

E = TypeVar("E", bound=Exception)


def describe_error(error: BaseException) -> str:
    """Return type and text of what a user's code has raised, whatever its text does."""
    try:
        text = str(error)
    except Exception as another:
        text = f"(its text raises {type(another).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def with_traceback(made: E, error: BaseException) -> E:
    """Return an error that stands for a user's one, with its traceback as a note.

    The user's own may take other arguments than a message, or hold what cannot be pickled: it would
    not come back from an actor. A note does, and is shown below the error.
    """
    told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    made.__notes__ = [f"where it was raised:\n{told}"]
    return made
