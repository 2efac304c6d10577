"""A wire inside one process: for tests, and for the labels of a pipeline of one stage."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from typing_extensions import Buffer

__all__ = ["LocalReceiveEnd", "LocalSendEnd", "local_wire"]


class _Channel:
    def __init__(self) -> None:
        self.frames: deque[Sequence[Buffer]] = deque()
        self.credits = 0


class LocalSendEnd:
    """The sender's end; nothing ever waits, so `timeout_s` has no meaning here."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def send(self, frames: Sequence[Buffer]) -> None:
        """Append one message."""
        self._channel.frames.append(frames)

    def credits(self, timeout_s: float) -> int:  # noqa: ARG002
        """Return the credits that have come back."""
        count, self._channel.credits = self._channel.credits, 0
        return count

    def close(self) -> None:
        """Forget what is under way."""
        self._channel.frames.clear()


class LocalReceiveEnd:
    """The receiver's end. With a `shuffle` generator it delivers late and out of order."""

    def __init__(self, channel: _Channel, shuffle: random.Random | None) -> None:
        self._channel = channel
        self._shuffle = shuffle

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:  # noqa: ARG002
        """Return the frames of a message, None if there is none."""
        frames = self._channel.frames
        if not frames:
            return None
        if self._shuffle is None:
            return frames.popleft()
        if self._shuffle.random() < 0.5:
            return None
        position = self._shuffle.randrange(len(frames))
        frames.rotate(-position)
        taken = frames.popleft()
        frames.rotate(position)
        return taken

    def grant(self, count: int) -> None:
        """Give `count` credits back."""
        self._channel.credits += count

    def close(self) -> None:
        """Forget what is under way."""
        self._channel.frames.clear()


def local_wire(shuffle: random.Random | None = None) -> tuple[LocalSendEnd, LocalReceiveEnd]:
    """Return the two ends of a wire inside this process.

    Args:
        shuffle: makes deliveries late and out of order, reproducibly; default: at once, in order.
    """
    channel = _Channel()
    return LocalSendEnd(channel), LocalReceiveEnd(channel, shuffle)
