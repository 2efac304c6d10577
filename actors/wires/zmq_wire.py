"""ZeroMQ wires between processes: ipc on one node, tcp with CURVE between nodes.

ZeroMQ's own thread moves the bytes while the stage computes, and takes them from and puts them
into the tensors' memory: no pickle, no copy in Python. A link is one pair of DEALER sockets, data
one way and credits the other.

    ipc   a socket file in a directory that only this user can enter; it is unlinked as soon as
          both ends are connected, so that nothing stays behind however a process ends
    tcp   encrypted and authenticated: every process makes a key pair, public keys travel through
          Ray, and a listener takes the keys of its pipeline only

A link is one connection. Once that is lost, messages may be, too, so nobody connects again: the
end that waits raises `LinkError`, after it has handed out what had come.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from actors.errors import MailboxError
from actors.wires.private_folder import PrivateFolder, clear_stale
from actors.wires.zmq_ends import ZmqReceiveEnd, ZmqSendEnd
from actors.wires.zmq_watch import Watch, never_again, with_pulse

__all__ = ["Address", "ZmqHub", "ZmqReceiveEnd", "ZmqSendEnd"]


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
        self._directory: PrivateFolder | None = None
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
        watch = Watch(name, socket, listens=True)
        file: Path | None = None
        if transport == "ipc":
            if self._directory is None:
                clear_stale()
                self._directory = PrivateFolder("ipc")
            file = self._directory.path / f"{len(self._ends)}.sock"
            address = Address(f"ipc://{file}")
            socket.bind(address.url)
            place: object = str(file)
        else:
            with_pulse(socket)
            self._authenticate()
            self._known.update(peers)
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = self.public_key, self._secret_key
            port = socket.bind_to_random_port(f"tcp://{self._host}")
            address = Address(f"tcp://{self._host}:{port}", self.public_key)
            place = (self._host, port)
        end = ZmqReceiveEnd(name, socket, watch, place, file)
        self._ends.append(end)
        return address, end

    def connect(self, name: str, capacity: int, address: Address) -> ZmqSendEnd:
        """Open the sender's end of a link to where its receiver listens."""
        socket = self._socket(capacity)
        watch = Watch(name, socket, listens=False)
        never_again(socket)
        if not address.url.startswith("ipc"):
            with_pulse(socket)
        if address.server_key:
            socket.curve_serverkey = address.server_key
            socket.curve_publickey, socket.curve_secretkey = self.public_key, self._secret_key
        socket.connect(address.url)
        end = ZmqSendEnd(name, socket, watch, same_node=address.url.startswith("ipc"))
        self._ends.append(end)
        return end

    def cut(self, name: str) -> None:
        """Cut an open link that ends here, as a pulled cable would. For tests of recovery.

        The one method that every thread may call: the connection is broken below ZeroMQ, and both
        ends find out by themselves.

        Raises:
            MailboxError: no link of this name is received here, or it is cut already.
        """
        ends = [e for e in self._ends if isinstance(e, ZmqReceiveEnd) and e.name == name]
        if not ends:
            raise MailboxError(f"no link {name} is received here: ask the stage that receives it")
        ends[-1].cut()

    def settle(self) -> None:
        """All senders are there: remove the directory of socket files, which nobody needs now."""
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def close(self) -> None:
        """Close every socket and remove what is on disk."""
        for end in self._ends:
            end.close()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.destroy()
        self.settle()

    def _socket(self, capacity: int) -> Any:
        socket = self._context.socket(zmq.DEALER)
        # Credits bound what is under way; the marks are the second fence, with room for the hello.
        # Twice: ZeroMQ counts up to half a mark that has long gone, and a send to a peer that is
        # gone, too, must not wait for it to go.
        socket.sndhwm = socket.rcvhwm = 2 * capacity + 4
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
