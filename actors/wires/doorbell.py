"""What a loop with many links waits at: whichever is first, without turning round and round.

    sockets of links    ──▶
                            Doorbell.wait ──▶ the links at which something is
    ring, by any thread ──▶

The kernel wakes the waiting thread; until then it costs nothing.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Hashable, Sequence
from typing import Any, Generic, TypeVar

import zmq

__all__ = ["Doorbell"]

T = TypeVar("T", bound=Hashable)


class Doorbell(Generic[T]):
    """A poller with a bell. All but `ring` belongs to the thread that waits."""

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._inside, zmq.POLLIN)
        self._watched: dict[T, Sequence[Any]] = {}
        self._whose: dict[Any, T] = {}

    def ring(self) -> None:
        """Wake whoever waits, from any thread: everything shall be looked at."""
        with contextlib.suppress(BlockingIOError, OSError):
            # A bell that rings already need not ring louder, one that is gone cannot.
            self._outside.send(b"!")

    def watch(self, whose: T, sockets: Sequence[Any]) -> None:
        """Wait at these sockets, too."""
        if whose in self._watched:
            self.leave(whose)
        self._watched[whose] = sockets
        for each in sockets:
            self._whose[each] = whose
            self._poller.register(each, zmq.POLLIN)

    def leave(self, whose: T) -> None:
        """Wait at them no more."""
        for each in self._watched.pop(whose, ()):
            del self._whose[each]
            self._poller.unregister(each)

    def wait(self, timeout_s: float) -> set[T]:
        """Return where something is, waiting up to `timeout_s`; after a ring, everywhere."""
        ready = self._poller.poll(max(0, round(1000 * timeout_s)))
        found: set[T] = set()
        for each, _ in ready:
            if each == self._inside.fileno() or each is self._inside:
                with contextlib.suppress(BlockingIOError):
                    while self._inside.recv(4096):
                        pass
                return set(self._watched)
            found.add(self._whose[each])
        return found

    def close(self) -> None:
        """Give the bell back."""
        self._inside.close()
        self._outside.close()
