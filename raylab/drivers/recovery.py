"""Try again from the last checkpoint when a stage, a node or a link was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from actors.errors import ActorLostError, LinkError
from raylab.errors import RaylabError

__all__ = ["with_recovery"]

T = TypeVar("T")


def with_recovery(
    attempt: Callable[[], T],
    most_failures: int,
    say: Callable[[str], None],
    where: Callable[[], str],
) -> T:
    """Return what `attempt` returns, made again after every loss.

    What a stage computed wrongly, a message that is corrupt and a bad input fail at once: they
    would fail again.

    Args:
        attempt: places, wires and runs the stages, from the newest checkpoint.
        most_failures: how many losses to bear; -1: any number.
        say: takes a line for the user at each.
        where: says where the next attempt begins.

    Raises:
        RaylabError: there were more losses than that.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except (ActorLostError, LinkError) as error:  # noqa: PERF203 - minutes, not loops
            failures += 1
            if 0 <= most_failures < failures:
                raise RaylabError(
                    f"a run bears {most_failures} losses of a stage, but this was one more: "
                    f"{error}: go on with raylab resume, from {where()}"
                ) from error
            limit = "" if most_failures < 0 else f" of {most_failures}"
            say(f"{error}: going on from {where()} (restart {failures}{limit})")
