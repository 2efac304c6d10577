"""Ray itself as the wire: numpy arguments to an actor's method. Fallback, and baseline to measure.

Calls to a concurrency group of one thread keep their order; the mailbox checks it all the same.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from typing_extensions import Buffer

__all__ = ["RayReceiveEnd", "RaySendEnd"]


def _nobody() -> None:
    """Nobody waits but at the end itself."""


class RaySendEnd:
    """The sender's end of a link.

    Args:
        name: of the link.
        peer: handle of the receiving actor, with a method `deliver(name, frames)`.
        ring: called when something has come.
    """

    sockets: tuple[()] = ()
    near = False

    def __init__(self, name: str, peer: Any, ring: Callable[[], None] = _nobody) -> None:
        self._name = name
        self._peer = peer
        self._ring = ring
        self._credits: queue.SimpleQueue[int] = queue.SimpleQueue()

    def send(self, frames: Sequence[Buffer]) -> None:
        """Call the receiver; Ray copies the frames before this returns."""
        arrays = [np.frombuffer(memoryview(frame), dtype=np.uint8) for frame in frames]
        self._peer.deliver.remote(self._name, *arrays)

    def credits(self, timeout_s: float) -> int:
        """Return the credits that have come back, waiting up to `timeout_s` for the first."""
        return sum(_drain(self._credits, timeout_s))

    def credited(self, count: int) -> None:
        """Take credits in; called by the actor's mail thread."""
        self._credits.put(count)
        self._ring()

    def close(self) -> None:
        """Nothing is held."""


class RayReceiveEnd:
    """The receiver's end of a link.

    Args:
        name: of the link.
        peer: handle of the sending actor, with a method `credit(name, count)`.
        ring: called when something has come.
    """

    sockets: tuple[()] = ()

    def __init__(self, name: str, peer: Any, ring: Callable[[], None] = _nobody) -> None:
        self._name = name
        self._peer = peer
        self._ring = ring
        self._frames: queue.SimpleQueue[Sequence[Buffer]] = queue.SimpleQueue()

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """Return the frames of a message, None if none has come within `timeout_s`."""
        try:
            return self._frames.get(block=timeout_s > 0, timeout=timeout_s or None)
        except queue.Empty:
            return None

    def delivered(self, frames: Sequence[Buffer]) -> None:
        """Take a message in; called by the actor's mail thread."""
        self._frames.put(frames)
        self._ring()

    def check(self) -> None:
        """Ray tells whoever asked for the other actor's work that it is gone, and nobody here."""

    def grant(self, count: int) -> None:
        """Send `count` credits back."""
        self._peer.credit.remote(self._name, count)

    def close(self) -> None:
        """Nothing is held."""


def _drain(items: queue.SimpleQueue[int], timeout_s: float) -> list[int]:
    found: list[int] = []
    try:
        if timeout_s > 0:
            found.append(items.get(timeout=timeout_s))
        while True:
            found.append(items.get_nowait())
    except queue.Empty:
        return found
