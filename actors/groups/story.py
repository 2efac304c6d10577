"""Adds who was doing what to whatever a rule raises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from actors.errors import MechanismError, StageError

__all__ = ["told"]


@contextlib.contextmanager
def told(who: str, doing: str) -> Iterator[None]:
    """Raise what a rule raises inside as a `StageError` that tells the story.

    An error that tells its own, and one of the mechanism, passes as it is.
    """
    try:
        yield
    except MechanismError:
        raise
    except Exception as error:
        if getattr(error, "tells_its_story", False):
            raise
        raise StageError(f"{who} failed at {doing}: {type(error).__name__}: {error}") from error
