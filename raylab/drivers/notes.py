"""Lines that a user should read before a run begins."""

from __future__ import annotations

import sys
from collections.abc import Iterable

__all__ = ["say_notes"]


def say_notes(notes: Iterable[str], *, progress: bool) -> None:
    """Write notes to standard error, a line each, where a run shows its progress there."""
    if progress:
        for note in notes:
            sys.stderr.write(f"note: {note}\n")
