"""Try again from the last checkpoint when a stage, a node or a link was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from actors.errors import ActorLostError, LinkError
from raylab.errors import RaylabError

__all__ = ["Losses", "hear_losses", "tell_loss", "with_recovery"]

T = TypeVar("T")

_hearers: list[Callable[[str], None]] = []


def hear_losses(hear: Callable[[str], None]) -> None:
    """Have the runs of this process tell of their losses, from any thread, whether they show their
    progress or not.
    """
    _hearers.append(hear)


def tell_loss(text: str, say: Callable[[str], None]) -> None:
    """Tell of a loss, and how the run goes on.

    Args:
        text: a line.
        say: takes it for the run's user.
    """
    say(text)
    for hear in _hearers:
        hear(text)


class Losses:
    """How many losses a run has borne.

    Args:
        most: how many to bear; -1: any number.
        say: takes a line for the user at each.
        noun: what is lost.
    """

    def __init__(self, most: int, say: Callable[[str], None], noun: str = "stage") -> None:
        self.count = 0
        self._most = most
        self._say = say
        self._noun = noun

    def bear(self, error: Exception, going_on: str, resumed: str) -> None:
        """Note one more.

        Args:
            error: that told of it.
            going_on: how the run goes on.
            resumed: where `raylab resume` would go on.

        Raises:
            RaylabError: it is one too many.
        """
        self.count += 1
        if 0 <= self._most < self.count:
            raise RaylabError(
                f"a run bears {self._most} losses of a {self._noun}, but this was one more: "
                f"{error}: go on with raylab resume, from {resumed}"
            ) from error
        limit = "" if self._most < 0 else f" of {self._most}"
        tell_loss(f"{error}: {going_on} (restart {self.count}{limit})", self._say)


def with_recovery(
    attempt: Callable[[], T],
    most_failures: int | Losses,
    say: Callable[[str], None],
    where: Callable[[], str],
) -> T:
    """Return what `attempt` returns, made again after every loss.

    What a stage computed wrongly, a message that is corrupt and a bad input fail at once: they
    would fail again.

    Args:
        attempt: places, wires and runs the stages, from the newest checkpoint.
        most_failures: how many losses to bear, -1: any number; or those borne so far.
        say: takes a line for the user at each.
        where: says where the next attempt begins.

    Raises:
        RaylabError: there were more losses than that.
    """
    losses = Losses(most_failures, say) if isinstance(most_failures, int) else most_failures
    while True:
        try:
            return attempt()
        except (ActorLostError, LinkError) as error:  # noqa: PERF203 - minutes, not loops
            losses.bear(error, f"going on from {where()}", where())
