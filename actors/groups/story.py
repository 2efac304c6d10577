"""Adds who was doing what to whatever a rule raises."""

from __future__ import annotations

from types import TracebackType

from actors.errors import MechanismError, StageError
from actors.user_errors import describe_error, with_traceback

__all__ = ["told"]


class told:  # noqa: N801
    """Raise what a rule raises inside as a `StageError` that tells the story.

    An error that tells its own, and one of the mechanism, passes as it is.

    Args:
        who: raises it.
        doing: with what; it is formatted with `about` only when there is something to tell.
        about: the names in it.
    """

    __slots__ = ("_about", "_doing", "_who")

    def __init__(self, who: str, doing: str, *about: object) -> None:
        self._who = who
        self._doing = doing
        self._about = about

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Tell what has been raised, if anything."""
        if not isinstance(error, Exception) or isinstance(error, MechanismError):
            return
        if getattr(error, "tells_its_story", False):
            return
        doing = self._doing.format(*self._about)
        raise with_traceback(
            StageError(f"{self._who} failed at {doing}: {describe_error(error)}"), error
        ) from error
