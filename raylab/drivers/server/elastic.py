"""How many workers a run is to have, while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from raylab.errors import ConfigError

__all__ = ["Elastic", "fewest_and_most"]

_LOOK_S = 5.0
_STAY_S = 60.0


class Elastic:
    """A number of workers that may change: by hand, or with what the cluster has to give.

    Args:
        workers: a number, or the fewest and the most; with a range a run has as many as the
            cluster has room for.
        room: tells for how many more workers the cluster has room now; negative: how many must go
            for others to have the room that they wait for.
        wait_s: how long to wait for the room of more.
        aside: servers, which need room as well.

    Raises:
        ConfigError: these are no numbers of workers.
    """

    def __init__(
        self,
        workers: int | Sequence[int],
        room: Callable[[], int],
        wait_s: float = 10.0,
        aside: int = 1,
    ) -> None:
        few, most = fewest_and_most(workers)
        self.wait_s = wait_s
        self._few, self._most = few, most
        self._room = room
        self._aside = aside
        self._wanted = few
        self._looked = -_LOOK_S
        self._stays_until = 0.0

    @property
    def wanted(self) -> int:
        """How many the run is to have."""
        return self._wanted

    @property
    def fewest(self) -> int:
        """The workers that the run does not go on without."""
        return self._few

    @property
    def most(self) -> int:
        """The most workers that the run may have."""
        return self._most

    def first(self) -> int:
        """Return how many to begin with: those for which there is room, the servers aside."""
        self._wanted = max(self._few, min(self._most, self._room() - self._aside))
        return self._wanted

    def want(self, workers: int | Sequence[int]) -> None:
        """Ask for another number, or another range, from any thread.

        Raises:
            ConfigError: it is none.
        """
        self._few, self._most = fewest_and_most(workers)
        self._stays_until, self._looked = 0.0, -_LOOK_S
        self._wanted = max(self._few, min(self._most, self._wanted))

    def stay(self, workers: int) -> None:
        """Go on with these for a while: there was no room for more after all."""
        self._wanted = workers
        self._stays_until = time.monotonic() + _STAY_S

    def differs(self, workers: int) -> bool:
        """Tell whether a run with so many workers is to have another number."""
        now = time.monotonic()
        if self._few < self._most and now - self._looked >= _LOOK_S and now >= self._stays_until:
            self._looked = now
            more = self._room()
            # Nobody is helped by workers that go if that is not enough.
            more = more if workers + more >= self._few else 0
            self._wanted = max(self._few, min(self._most, workers + more))
        return self._wanted != workers


def fewest_and_most(workers: int | Sequence[int]) -> tuple[int, int]:
    """Return the fewest and the most workers.

    Raises:
        ConfigError: these are no numbers of workers.
    """
    found: list[Any] = list(workers) if isinstance(workers, list | tuple) else [workers]
    few, most = (found[0], found[-1]) if found else (0, 0)
    if any(type(each) is not int for each in found) or len(found) > 2 or not 1 <= few <= most:
        raise ConfigError(
            f"workers must be a number >= 1, or the fewest and the most of them, but got "
            f"{workers!r}"
        )
    return few, most
