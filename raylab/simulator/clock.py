"""Virtual time: what is to happen, in its order, and links that take their time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

__all__ = ["Clock", "Link"]


class Clock:
    """A queue of actions. Those of one time happen in the order in which they were put."""

    def __init__(self) -> None:
        self.now = 0.0
        """Virtual seconds since the beginning."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Let something happen at a time."""
        heapq.heappush(self._queue, (when, next(self._order), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen so much later than now."""
        self.at(self.now + seconds, action)

    def step(self) -> bool:
        """Let the next thing happen; tell whether there was one."""
        if not self._queue:
            return False
        self.now, _, action = heapq.heappop(self._queue)
        action()
        return True


class Link:
    """One way of a link, which carries one message after the other.

    Args:
        bytes_per_s: that it carries.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    def passes(self, now: float, size_bytes: int) -> float:
        """Return when a message that comes now has passed."""
        self._free_s = max(now, self._free_s) + size_bytes / self._bytes_per_s
        return self._free_s
