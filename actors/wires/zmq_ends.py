"""The two ends of a ZeroMQ link: messages one way, credits the other."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq
from typing_extensions import Buffer

from actors.errors import MailboxError
from actors.wires.node_memory import NodeMemory, TheirMemory, is_ticket
from actors.wires.zmq_watch import Closed, Watch

__all__ = ["ZmqReceiveEnd", "ZmqSendEnd"]

_CREDIT = struct.Struct("<I")
_HELLO = b"raylab 1 "
_OFFER = b"\0"
"""Before what is offered in a hello."""
_NOBLOCK, _MORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)
"""Not the flags themselves, which take longer to pass."""


class ZmqSendEnd:
    """The sender's end of a link.

    Args:
        name: of the link.
        socket: connected.
        watch: of the socket.
        same_node: whether the receiver is on this node, so that memory may carry large frames.
    """

    def __init__(self, name: str, socket: Any, watch: Watch, *, same_node: bool = False) -> None:
        self.name = name
        self._socket = socket
        self._watch = watch
        self._memory: NodeMemory | None = None
        if same_node:
            with contextlib.suppress(OSError):
                self._memory = NodeMemory()
        offer = b"" if self._memory is None else self._memory.offer
        self._socket.send(_HELLO + name.encode() + _OFFER + offer)

    def send(self, frames: Sequence[Buffer]) -> None:
        """Copy a message's large frames to the receiver's memory, or hand them to ZeroMQ's thread,
        which reads them later.
        """
        header, *bodies = frames
        if not bodies:
            self._socket.send(header)
            return
        if self._memory is not None and (ticket := self._memory.put(bodies)) is not None:
            self._socket.send(b"".join([ticket, header]))
            return
        self._socket.send(header, _MORE)
        last = len(bodies) - 1
        for place, body in enumerate(bodies):
            self._socket.send(body, _MORE if place < last else 0, copy=False)

    @property
    def sockets(self) -> Sequence[Any]:
        """What tells of credits, and of the end of the link."""
        return self._watch.sockets

    def credits(self, timeout_s: float) -> int:
        """Return the credits that have come back, waiting up to `timeout_s` for the first.

        Raises:
            LinkError: none has come, none can.
            MailboxError: this end is closed, or what came is no credit.
        """
        count = 0
        while self._watch.there(timeout_s):
            came = self._socket.recv(_NOBLOCK)
            if len(came) != _CREDIT.size:
                raise MailboxError(f"{self.name} got {len(came)} bytes that are no credit")
            count += _CREDIT.unpack(came)[0]
            timeout_s = 0.0
        return count

    def close(self) -> None:
        """Close the socket; what was sent may still arrive for a second."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        self._watch.close()
        self._socket = Closed(self.name)


class ZmqReceiveEnd:
    """The receiver's end of a link.

    Args:
        name: of the link.
        socket: bound.
        watch: of the socket.
        place: where it is bound, as `getsockname` tells.
        file: to unlink once the sender is there.
    """

    def __init__(
        self, name: str, socket: Any, watch: Watch, place: object, file: Path | None
    ) -> None:
        self.name = name
        self._socket = socket
        self._watch = watch
        self._place = place
        self._file = file
        self._memory: TheirMemory | None = None

    def accept(self, timeout_s: float) -> None:
        """Wait for the sender; then nobody else need find the way here, so unlink it.

        Raises:
            MailboxError: the sender did not come in time, or was another one.
        """
        if not self._watch.there(timeout_s):
            raise MailboxError(f"nobody connected to {self.name} within {timeout_s:g} s")
        hello = self._socket.recv(copy=False)
        greeting, _, offer = hello.bytes.partition(_OFFER)
        if greeting != _HELLO + self.name.encode():
            raise MailboxError(f"{self.name} was greeted with {greeting!r}")
        self._watch.follow(hello.get(zmq.SRCFD))
        if offer:
            with contextlib.suppress(OSError):
                self._memory = TheirMemory(offer)
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """Return the frames of a message, None if none has come within `timeout_s`.

        Raises:
            LinkError: none is left, none can come.
            MailboxError: this end is closed.
        """
        if not self._watch.there(timeout_s):
            return None
        frame = self._socket.recv(_NOBLOCK, copy=False)
        frames = [frame.buffer]
        while frame.more:
            frame = self._socket.recv(_NOBLOCK, copy=False)
            frames.append(frame.buffer)
        if self._memory is not None and is_ticket(frames[0]):
            return self._memory.take(frames[0])
        return frames

    @property
    def sockets(self) -> Sequence[Any]:
        """What tells of messages, and of the end of the link."""
        return self._watch.sockets

    def check(self) -> None:
        """Look whether the link has ended, without waiting.

        Raises:
            LinkError: it has, and nothing is left to receive.
        """
        self._watch.check()

    def grant(self, count: int) -> None:
        """Send `count` credits back; nobody misses them if the sender has left."""
        with contextlib.suppress(zmq.Again):
            self._socket.send(_CREDIT.pack(count), _NOBLOCK)

    def cut(self) -> None:
        """Break the connection, see `ZmqHub.cut`."""
        self._watch.cut(self._place)

    def close(self) -> None:
        """Close the socket."""
        self._memory = None
        self._watch.close()
        self._socket = Closed(self.name)
