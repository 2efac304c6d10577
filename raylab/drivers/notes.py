"""Lines on standard error beside a bar: what to know before a run, what is being done now."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

__all__ = ["Say", "say_notes", "say_steps", "silence"]

Say = Callable[[str], None]
"""Takes a line of what is being done."""


def say_notes(notes: Iterable[str], *, progress: bool) -> None:
    """Write notes to standard error, a line each, where a run shows its progress there."""
    if progress:
        for note in notes:
            sys.stderr.write(f"note: {note}\n")


def silence(text: str) -> None:
    """Say nothing."""


def say_steps(*, progress: bool) -> Say:
    """Return what writes a line of what is being done to standard error, if it is to be shown."""
    return _say_step if progress else silence


def _say_step(text: str) -> None:
    sys.stderr.write(f"{text} …\n")
    sys.stderr.flush()
