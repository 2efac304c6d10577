"""Waits on a ZeroMQ socket for a message or for the end of the connection behind it.

ZeroMQ hides that a connection is lost: a socket whose peer is gone stays silent for ever. Its
monitor tells, and is asked only when nothing has come, so that it costs a busy link nothing.
"""

from __future__ import annotations

import itertools
import os
import socket as sockets
import time
from typing import Any, Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from actors.errors import LinkError, MailboxError

__all__ = ["HEARTBEAT_S", "HEARTBEAT_TIMEOUT_S", "Closed", "Watch", "never_again", "with_pulse"]

HEARTBEAT_S = 5.0
"""Time between two signs of life over tcp: a node that loses its power says no goodbye."""
HEARTBEAT_TIMEOUT_S = 30.0
"""Silence after which the other node counts as dead: longer than what a switch needs to find
another way, or one big message to pass, behind which signs of life must queue. ZeroMQ's own thread
answers, so that however long a stage computes, it is not silent."""
_LOOK_S = 0.1
"""Longest time without a message after which the monitor is asked."""
_NEVER_MS = 86_400_000
_POLLIN = int(zmq.POLLIN)
"""Not the flag itself, whose arithmetic takes longer than to ask the socket."""

_numbers = itertools.count()
"""A monitor's place is named by a number of its own: a descriptor comes back into use before
ZeroMQ's thread has taken down the place of the socket that had it."""

_ENDED: dict[int, str] = {
    zmq.EVENT_DISCONNECTED: "its other end was closed, its process died or the network failed",
    zmq.EVENT_CLOSED: "nobody listens at its other end",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "its other end broke off the handshake",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "its other end speaks another protocol",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "its other end does not know the key of this one",
}


def never_again(socket: Any) -> None:
    """Let a socket connect once only.

    A connection that came back would go on without the messages that the lost one had under way.
    Not ZeroMQ's own "never", -1, with which it drops the credits that have already come.
    """
    socket.reconnect_ivl = _NEVER_MS


def with_pulse(socket: Any) -> None:
    """Let a socket send signs of life and miss those of its peer."""
    socket.heartbeat_ivl = round(1000 * HEARTBEAT_S)
    socket.heartbeat_timeout = round(1000 * HEARTBEAT_TIMEOUT_S)


class Watch:
    """Tells whether a message is there, and whether any can still come.

    Args:
        name: of the link.
        socket: of this end, neither bound nor connected yet.
        listens: whether others connect to it: then the link is the connection that `follow`
            names, and strangers who come and go do not matter.
    """

    def __init__(self, name: str, socket: Any, *, listens: bool) -> None:
        self._name = name
        self._socket = socket
        self._listens = listens
        self._peer: int | None = None
        self._connected: set[int] = set()
        self._ended = ""
        events = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED if listens else sum(_ENDED)
        place = f"inproc://watch-{next(_numbers)}"
        socket.monitor(place, events)
        # No mark on what waits here: ZeroMQ's thread would stand still once it is reached.
        self._monitor = socket.context.socket(zmq.PAIR)
        self._monitor.rcvhwm = self._monitor.linger = 0
        self._monitor.connect(place)
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)

    def there(self, timeout_s: float) -> bool:
        """Tell whether a message is there, waiting up to `timeout_s` for it.

        Raises:
            LinkError: it was waited for, but the link is cut and all that came before is received.
        """
        # Asking costs less than the exception of an empty recv.
        if self._has_message():
            return True
        return timeout_s > 0 and self._wait(timeout_s)

    @property
    def sockets(self) -> tuple[Any, Any]:
        """What a poller may wait at: the socket and what tells of its connections."""
        return self._socket, self._monitor

    def check(self) -> None:
        """Read what has been told of the connection, without waiting.

        Raises:
            LinkError: the link is cut, and all that came before is received.
        """
        self._look()
        if self._ended and not self._has_message():
            raise self._cut_error()

    def follow(self, descriptor: int) -> None:
        """Take the connection with this file descriptor as the link."""
        self._peer = descriptor
        self._look()
        if descriptor not in self._connected:
            self._end(zmq.EVENT_DISCONNECTED)

    def cut(self, address: object) -> None:
        """Break the connection that is followed, from any thread; both ends are left to find out.

        Args:
            address: as `getsockname` of the connection must tell, so that no other is hit.

        Raises:
            MailboxError: there is no connection any more.
        """
        try:
            if self._peer is None:
                raise OSError("nobody has connected")
            with sockets.socket(fileno=os.dup(self._peer)) as connection:
                if connection.getsockname() != address:
                    raise OSError("its descriptor belongs to another connection")
                connection.shutdown(sockets.SHUT_RDWR)
        except OSError as error:
            raise MailboxError(f"the link {self._name} cannot be cut: {error}") from error

    def close(self) -> None:
        """Close the socket and its monitor; both may be closed already."""
        if not isinstance(self._socket, Closed):
            # First: ZeroMQ's thread would wait for ever to tell a monitor that is gone.
            self._socket.disable_monitor()
            self._socket.close()
            self._monitor.close()
            self._socket = Closed(self._name)

    def _cut_error(self) -> LinkError:
        return LinkError(f"the link {self._name} was cut: {self._ended}")

    def _has_message(self) -> bool:
        return bool(self._socket.getsockopt(zmq.EVENTS) & _POLLIN)

    def _wait(self, timeout_s: float) -> bool:
        deadline = time.perf_counter() + timeout_s
        while not self._ended:
            left_s = deadline - time.perf_counter()
            if left_s <= 0:
                return False
            if self._poller.poll(max(1, round(1000 * min(left_s, _LOOK_S)))):
                return True
            self._look()
        # What came before the end was in the socket before the end was told.
        if self._has_message():
            return True
        raise self._cut_error()

    def _look(self) -> None:
        """Read what the monitor tells."""
        while self._monitor.getsockopt(zmq.EVENTS) & _POLLIN:
            told = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            descriptor = int(told["value"])
            if told["event"] == zmq.EVENT_ACCEPTED:
                self._connected.add(descriptor)
                continue
            self._connected.discard(descriptor)
            if not self._listens or descriptor == self._peer:
                self._end(told["event"])

    def _end(self, event: int) -> None:
        if not self._ended:
            self._ended = _ENDED[event]
            # Nobody will read what is still under way.
            self._socket.linger = 0


class Closed:
    """Stands where a socket was: whoever uses it is told so."""

    def __init__(self, name: str) -> None:
        self._name: Final = name

    def __getattr__(self, attribute: str) -> Any:
        raise MailboxError(f"the link {self._name} is closed at this end")
