"""What a run shows to its user while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["RunView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What a run calls.

    Args:
        ready: when its numbers are known.
        show: takes the epochs done and the new rows.
        say: takes a line for the user.
        asked: whether who hears the rows wants the run to end.
    """

    ready: Callable[[], None]
    show: Callable[[float, Sequence[Mapping[str, Any]]], None]
    say: Callable[[str], None]
    asked: Callable[[], bool]
