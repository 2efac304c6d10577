"""Bounded, ordered boxes between stages, the same over every wire.

    stage k                                                        stage k+1
    Outbox.put ── takes a credit ── frames ──▶ wire ──▶ Inbox.take ── grants a credit ──┐
        ▲                                                                               │
        └──────────────────────────────── credits ◀─────────────────────────────────────┘

A sender holds `capacity` credits at the start, spends one a message and gets it back when the
receiver *takes* the message out, so never more than `capacity` messages are under way or waiting:
a fast stage waits, it does not buffer. Messages carry a sequence number; an inbox hands them out
in that order however the wire delivers them, each once.

What is answered (`ANSWERED`) is taken when the answer comes, which `Outbox.answered` is told: no
credit goes back for it.

The tensors of a message may go by a carrier of their own: it is asked for them in the order of the
sequence numbers, as soon as their header is there, and lets go of them when the credit is back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from typing_extensions import Buffer

from actors.errors import MailboxError
from actors.wires.carrier import TensorCarrier
from actors.wires.frames import Envelope, encode, unpack
from actors.wires.inline_carrier import INLINE
from actors.wires.messages import ANSWERED, Message, size_bytes

__all__ = ["BoxStatistics", "FeatureBox", "Inbox", "Outbox", "ReceiveEnd", "SendEnd"]


class SendEnd(Protocol):
    """The sender's end of a wire."""

    def send(self, frames: Sequence[Buffer]) -> None:
        """Start sending one message; do not wait for its arrival."""
        ...

    @property
    def sockets(self) -> Sequence[Any]:
        """What a poller may wait at for credits, or for the end of the link."""
        ...

    def credits(self, timeout_s: float) -> int:
        """Return the credits that have come back, waiting up to `timeout_s` for the first."""
        ...

    def close(self) -> None:
        """Give the wire back; what is under way may be lost."""
        ...


class ReceiveEnd(Protocol):
    """The receiver's end of a wire."""

    @property
    def sockets(self) -> Sequence[Any]:
        """What a poller may wait at for messages, or for the end of the link."""
        ...

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """Return the frames of a message, None if none has come within `timeout_s`."""
        ...

    def check(self) -> None:
        """Raise LinkError if the link is known to be cut and nothing is left to receive."""
        ...

    def grant(self, count: int) -> None:
        """Send `count` credits back."""
        ...

    def close(self) -> None:
        """Give the wire back; what is under way may be lost."""
        ...


@dataclass(slots=True)
class BoxStatistics:
    """What a box has seen. For an outbox, depth counts the messages not yet taken, and
    `peak_bytes` the most that their tensors had together.
    """

    messages: int = 0
    bytes: int = 0
    waited_s: float = 0.0
    depth: int = 0
    peak_depth: int = 0
    peak_bytes: int = 0

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


class FeatureBox(Protocol):
    """What messages are taken from: an inbox, or the source at stage 0."""

    name: str
    statistics: BoxStatistics

    def take(self, timeout_s: float = 0.0) -> Message | None:
        """Return the next message, None if it has not come within `timeout_s`."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Outbox:
    """The sending side: numbers the messages and never exceeds its credits.

    Args:
        name: what it is called in errors and metrics.
        end: the sender's end of a wire.
        capacity: credits at the start, >= 1.
        carrier: of the messages' tensors, the sender's end.
    """

    def __init__(
        self, name: str, end: SendEnd, capacity: int, carrier: TensorCarrier = INLINE
    ) -> None:
        if capacity < 1:
            raise MailboxError(f"capacity >= 1 must hold, but got {capacity} for {name}")
        self.name = name
        self.capacity = capacity
        self.statistics = BoxStatistics()
        self._end = end
        self._carrier = carrier
        self._credits = capacity
        self._sequence = 0
        self._sizes: deque[int] = deque()
        """Of the messages that are not yet taken, and what they are together."""
        self._under_way = 0

    def ready(self, timeout_s: float = 0.0) -> bool:
        """Tell whether a message may be put, waiting up to `timeout_s` for a credit."""
        self._collect(0.0)
        if not self._credits and timeout_s > 0:
            started = time.perf_counter()
            self._collect(timeout_s)
            self.statistics.waited_s += time.perf_counter() - started
        return self._credits > 0

    def put(self, message: Message) -> None:
        """Send a message.

        Raises:
            LinkError: the carrier of its tensors was cut.
            MailboxError: there is no credit; ask `ready` before.
        """
        if not self._credits:
            raise MailboxError(f"{self.name} is full: {self.capacity} messages are not yet taken")
        self._end.send(encode(self._sequence, message, self._carrier))
        self._sequence += 1
        self._credits -= 1
        size = size_bytes(message)
        self._sizes.append(size)
        self._under_way += size
        figures = self.statistics
        figures.messages += 1
        figures.bytes += size
        figures.depth = depth = self.capacity - self._credits
        figures.peak_depth = max(figures.peak_depth, depth)
        figures.peak_bytes = max(figures.peak_bytes, self._under_way)

    def answered(self) -> None:
        """The answer to a message has come, so that it was taken.

        Raises:
            MailboxError: none is under way.
        """
        self._got_back(1)

    def has_room(self, count: int = 1) -> bool:
        """Tell whether so many messages may be put, asking for credits only if that is not known.

        Unlike `ready`, it leaves credits where they are that nobody needs yet.
        """
        if self._credits < count:
            self._collect(0.0)
        return self._credits >= count

    @property
    def sockets(self) -> Sequence[Any]:
        """What a poller may wait at for credits; empty: it is told otherwise."""
        return self._end.sockets

    def settle(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` until every message has been taken."""
        deadline = time.perf_counter() + timeout_s
        self._collect(0.0)
        while self._credits < self.capacity and (left := deadline - time.perf_counter()) > 0:
            self._collect(left)

    def close(self) -> None:
        """Give the wire back."""
        self._end.close()
        self._carrier.close()

    def _collect(self, timeout_s: float) -> None:
        self._got_back(self._end.credits(timeout_s))

    def _got_back(self, back: int) -> None:
        if not back:
            return
        self._credits += back
        if self._credits > self.capacity:
            raise MailboxError(f"{self.name} got more credits back than it had spent")
        for _ in range(back):
            self._under_way -= self._sizes.popleft()
        self._carrier.taken(back)
        self.statistics.depth = self.capacity - self._credits


class Inbox:
    """The receiving side: hands the messages out in the order in which they were put.

    Args:
        name: what it is called in errors and metrics.
        end: the receiver's end of a wire.
        capacity: credits that the sender holds; more messages than that at a time are an error.
        carrier: of the messages' tensors, the receiver's end.
    """

    def __init__(
        self, name: str, end: ReceiveEnd, capacity: int, carrier: TensorCarrier = INLINE
    ) -> None:
        self.name = name
        self.capacity = capacity
        self.statistics = BoxStatistics()
        self._end = end
        self._carrier = carrier
        self._next = 0
        self._begun = 0
        self._waiting: dict[int, Envelope] = {}

    def take(self, timeout_s: float = 0.0, *, ahead: bool = True) -> Message | None:
        """Return the next message in order, None if it has not come within `timeout_s`.

        Args:
            timeout_s: to wait.
            ahead: whether to take what is behind it off the wire as well: then it is known how many
                messages wait, and their carrier begins with them.

        Raises:
            CorruptMessageError: a message did not arrive as it was put.
            LinkError: the link was cut, and what had come before is taken.
            MailboxError: a message came twice, or more came than there are credits.
        """
        waiting = self._waiting
        if ahead or self._next not in waiting:
            self._collect(0.0, ahead)
            if self._next not in waiting and timeout_s > 0:
                self._wait(timeout_s, ahead)
        envelope = waiting.pop(self._next, None)
        if envelope is None:
            return None
        message = envelope.opened()
        self._next += 1
        if message.kind not in ANSWERED:
            self._end.grant(1)
        figures = self.statistics
        figures.messages += 1
        figures.bytes += size_bytes(message)
        figures.depth = len(waiting)
        return message

    @property
    def sockets(self) -> Sequence[Any]:
        """What a poller may wait at for messages; empty: it is told otherwise."""
        return self._end.sockets

    def check(self) -> None:
        """Look whether the link has ended, without waiting.

        Raises:
            LinkError: it was cut, and what had come before is taken.
        """
        if self._next not in self._waiting:
            self._end.check()

    def close(self) -> None:
        """Give the wire back."""
        self._end.close()
        self._carrier.close()

    def _wait(self, timeout_s: float, ahead: bool) -> None:
        started = time.perf_counter()
        deadline = started + timeout_s
        while self._next not in self._waiting:
            left = deadline - time.perf_counter()
            if left <= 0:
                break
            self._collect(left, ahead)
        self.statistics.waited_s += time.perf_counter() - started

    def _collect(self, timeout_s: float, ahead: bool) -> None:
        """Take what has come off the wire, waiting only for the first; all of it, or up to the
        message that is next.
        """
        frames = self._end.receive(timeout_s)
        while frames is not None:
            envelope = unpack(frames, self.name)
            sequence = envelope.sequence
            if sequence < self._next or sequence in self._waiting:
                raise MailboxError(f"{self.name} got message {sequence} twice")
            self._waiting[sequence] = envelope
            depth = len(self._waiting)
            if depth > self.capacity:
                raise MailboxError(f"{self.name} holds {depth} messages, but {self.capacity} fit")
            self.statistics.depth = depth
            self.statistics.peak_depth = max(self.statistics.peak_depth, depth)
            while (begun := self._waiting.get(self._begun)) is not None:
                begun.receive(self._carrier, self.name)
                self._begun += 1
            if not ahead and self._next in self._waiting:
                break
            frames = self._end.receive(0.0)
