"""Actors that give way to other processes where the driver would not.

Ray starts its workers at niceness 15, where one ordinary process beside them leaves an actor 4 % of
a core that both want. A Ray that raylab starts does not (`raylab.drivers.ray_start`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

__all__ = ["tell_of_niceness"]

_told: list[int] = []


def tell_of_niceness(actors: Iterable[int], say: Callable[[str], None]) -> None:
    """Say, once in a process, that actors are nicer than it, and what to set.

    Args:
        actors: their niceness.
        say: takes a line for the user.
    """
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    most = max(actors, default=mine)
    if most > mine and not _told:
        _told.append(most)
        say(
            f"note: the actors run at niceness {most} and this process at {mine}, so that other "
            f"processes of their nodes come first: start Ray with RAY_worker_niceness={mine} in "
            "its environment, on every node"
        )
