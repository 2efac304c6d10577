"""A wire inside one process: for tests, and for the labels of a pipeline of one stage."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from typing_extensions import Buffer

from actors.errors import LinkError

__all__ = ["LocalReceiveEnd", "LocalSendEnd", "local_wire"]


class _Channel:
    def __init__(self, name: str, shuffle: random.Random | None) -> None:
        self.frames: deque[Sequence[Buffer]] = deque()
        self.credits = 0
        self._name = name
        self._shuffle = shuffle
        self._cut = False

    def send(self, frames: Sequence[Buffer]) -> None:
        if not self._cut:
            self.frames.append(frames)

    def receive(self) -> Sequence[Buffer] | None:
        frames = self.frames
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

    def cut(self) -> None:
        self._cut = True
        # Without a shuffle, what was sent has arrived.
        if self._shuffle is not None:
            self.frames.clear()

    def check(self) -> None:
        if self._cut:
            raise LinkError(f"the link {self._name} was cut: one of its ends was closed")


class LocalSendEnd:
    """The sender's end; nothing ever waits, so `timeout_s` only asks for the error of a cut."""

    sockets: tuple[()] = ()
    near = False

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def send(self, frames: Sequence[Buffer]) -> None:
        """Append one message."""
        self._channel.send(frames)

    def credits(self, timeout_s: float) -> int:
        """Return the credits that have come back.

        Raises:
            LinkError: there is none, it is waited for, and the wire is cut.
        """
        count, self._channel.credits = self._channel.credits, 0
        if not count and timeout_s > 0:
            self._channel.check()
        return count

    def cut(self) -> None:
        """Cut the wire: what a shuffle holds back is lost."""
        self._channel.cut()

    def close(self) -> None:
        """Cut the wire."""
        self._channel.cut()


class LocalReceiveEnd:
    """The receiver's end. With a `shuffle` generator it delivers late and out of order."""

    sockets: tuple[()] = ()

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """Return the frames of a message, None if there is none.

        Raises:
            LinkError: there is none, it is waited for, and the wire is cut.
        """
        frames = self._channel.receive()
        if frames is None and timeout_s > 0:
            self._channel.check()
        return frames

    def check(self) -> None:
        """Look whether the wire is cut.

        Raises:
            LinkError: it is, and nothing is left.
        """
        if not self._channel.frames:
            self._channel.check()

    def grant(self, count: int) -> None:
        """Give `count` credits back."""
        self._channel.credits += count

    def cut(self) -> None:
        """Cut the wire: what a shuffle holds back is lost."""
        self._channel.cut()

    def close(self) -> None:
        """Cut the wire and forget what has come."""
        self._channel.cut()
        self._channel.frames.clear()


def local_wire(
    shuffle: random.Random | None = None, name: str = "inside this process"
) -> tuple[LocalSendEnd, LocalReceiveEnd]:
    """Return the two ends of a wire inside this process.

    Args:
        shuffle: makes deliveries late and out of order, reproducibly; default: at once, in order.
        name: of the link, in errors.
    """
    channel = _Channel(name, shuffle)
    return LocalSendEnd(channel), LocalReceiveEnd(channel)
