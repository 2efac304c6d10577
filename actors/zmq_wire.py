"""ZeroMQ wires between processes: ipc on one node, tcp with CURVE between nodes.

ZeroMQ's own thread moves the bytes while the stage computes, and takes them from and puts them
into the tensors' memory: no pickle, no copy in Python. A link is one pair of DEALER sockets, data
one way and credits the other.

    ipc   a socket file in a directory that only this user can enter; it is unlinked as soon as
          both ends are connected, so that nothing stays behind however a process ends
    tcp   encrypted and authenticated: every process makes a key pair, public keys travel through
          Ray, and a listener takes the keys of its pipeline only
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zmq
import zmq.auth
from typing_extensions import Buffer
from zmq.auth.thread import ThreadAuthenticator

from actors.errors import MailboxError

__all__ = ["Address", "ZmqHub", "ZmqReceiveEnd", "ZmqSendEnd"]

_CREDIT = struct.Struct("<I")
_HELLO = b"raylab 1 "


@dataclass(frozen=True, slots=True)
class Address:
    """Where an inbox listens.

    Args:
        url: ZeroMQ endpoint.
        server_key: public CURVE key of the listener for tcp; empty for ipc.
    """

    url: str
    server_key: bytes = b""


class ZmqHub:
    """The ZeroMQ context, keys and listeners of one process. All its sockets belong to one thread.

    Args:
        host: address to listen on for tcp; the loopback unless told otherwise.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._context = zmq.Context()
        self._host = host
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._authenticator: ThreadAuthenticator | None = None
        self._known: set[bytes] = set()
        self._ends: list[ZmqSendEnd | ZmqReceiveEnd] = []
        self.public_key, self._secret_key = zmq.curve_keypair()

    def listen(
        self,
        name: str,
        capacity: int,
        transport: Literal["ipc", "tcp"] = "ipc",
        peers: Collection[bytes] = (),
    ) -> tuple[Address, ZmqReceiveEnd]:
        """Open the receiver's end of a link.

        Args:
            name: of the link; the other end must say the same.
            capacity: messages that may be under way.
            transport: "ipc" or "tcp".
            peers: public keys that may connect over tcp.
        """
        socket = self._socket(capacity)
        file: Path | None = None
        if transport == "ipc":
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(prefix="raylab-")
            file = Path(self._directory.name) / f"{len(self._ends)}.sock"
            address = Address(f"ipc://{file}")
            socket.bind(address.url)
        else:
            self._authenticate()
            self._known.update(peers)
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = self.public_key, self._secret_key
            port = socket.bind_to_random_port(f"tcp://{self._host}")
            address = Address(f"tcp://{self._host}:{port}", self.public_key)
        end = ZmqReceiveEnd(name, socket, file)
        self._ends.append(end)
        return address, end

    def connect(self, name: str, capacity: int, address: Address) -> ZmqSendEnd:
        """Open the sender's end of a link to where its receiver listens."""
        socket = self._socket(capacity)
        if address.server_key:
            socket.curve_serverkey = address.server_key
            socket.curve_publickey, socket.curve_secretkey = self.public_key, self._secret_key
        socket.connect(address.url)
        end = ZmqSendEnd(name, socket)
        self._ends.append(end)
        return end

    def settle(self) -> None:
        """All senders are there: remove the directory of socket files, which nobody needs now."""
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def close(self) -> None:
        """Close every socket and remove what is on disk."""
        for end in self._ends:
            end.close()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()
        self.settle()

    def _socket(self, capacity: int) -> Any:
        socket = self._context.socket(zmq.DEALER)
        # Credits bound what is under way; the marks are the second fence, with room for the hello.
        socket.sndhwm = socket.rcvhwm = capacity + 2
        socket.linger = 1000
        return socket

    def _authenticate(self) -> None:
        if self._authenticator is None:
            self._authenticator = ThreadAuthenticator(self._context)
            self._authenticator.start()
            self._authenticator.configure_curve_callback(
                domain="*", credentials_provider=_Known(self._known)
            )


class _Known:
    """Tells ZeroMQ which public keys may connect; more may be added later."""

    def __init__(self, keys: set[bytes]) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:  # noqa: ARG002
        return key in self._keys


class ZmqSendEnd:
    """The sender's end of a link."""

    def __init__(self, name: str, socket: Any) -> None:
        self._socket = socket
        self._arrivals = _Arrivals(socket)
        self._socket.send(_HELLO + name.encode())

    def send(self, frames: Sequence[Buffer]) -> None:
        """Hand one message to ZeroMQ's thread, which reads the frames' memory later."""
        header, *bodies = frames
        self._socket.send(header, zmq.SNDMORE if bodies else 0)
        for left, body in zip(range(len(bodies) - 1, -1, -1), bodies, strict=True):
            self._socket.send(body, zmq.SNDMORE if left else 0, copy=False)

    def credits(self, timeout_s: float) -> int:
        """Return the credits that have come back, waiting up to `timeout_s` for the first."""
        count = 0
        while self._arrivals.there(timeout_s):
            count += _CREDIT.unpack(self._socket.recv(zmq.NOBLOCK))[0]
            timeout_s = 0.0
        return count

    def close(self) -> None:
        """Close the socket; what was sent may still arrive for a second."""
        self._socket.close()


class ZmqReceiveEnd:
    """The receiver's end of a link."""

    def __init__(self, name: str, socket: Any, file: Path | None) -> None:
        self._name = name
        self._socket = socket
        self._arrivals = _Arrivals(socket)
        self._file = file

    def accept(self, timeout_s: float) -> None:
        """Wait for the sender; then nobody else need find the way here, so unlink it.

        Raises:
            MailboxError: the sender did not come in time, or was another one.
        """
        if not self._arrivals.there(timeout_s):
            raise MailboxError(f"nobody connected to {self._name} within {timeout_s:g} s")
        hello = self._socket.recv()
        if hello != _HELLO + self._name.encode():
            raise MailboxError(f"{self._name} was greeted with {hello!r}")
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        """Return the frames of a message, None if none has come within `timeout_s`."""
        if not self._arrivals.there(timeout_s):
            return None
        frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        frames = [frame.buffer]
        while frame.more:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            frames.append(frame.buffer)
        return frames

    def grant(self, count: int) -> None:
        """Send `count` credits back; nobody misses them if the sender has left."""
        with contextlib.suppress(zmq.Again):
            self._socket.send(_CREDIT.pack(count), zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Arrivals:
    """Tells whether a message is there: without the exception that an empty recv costs."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)

    def there(self, timeout_s: float) -> bool:
        if self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            return True
        return timeout_s > 0 and bool(self._poller.poll(_milliseconds(timeout_s)))


def _milliseconds(timeout_s: float) -> int:
    return max(1, round(1000 * timeout_s))
