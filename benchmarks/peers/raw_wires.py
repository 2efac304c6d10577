"""Microseconds per message on bare transports between two plain processes.

One way and pipelined: the sender sends back to back, held back only by the transport's own bound,
and the receiver makes a float32 tensor of each message and reads one element of it::

    sender    |send|send|send|send|          elapsed = the receiver's last read
    receiver     |read|read|read|read|                 - the sender's first send
"""

from __future__ import annotations

import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import zmq
from torch import Tensor

from benchmarks.peers.processes import Channel, PeerError, run_group
from benchmarks.peers.rendezvous import gloo, open_store

__all__ = [
    "HIGH_WATER_MARK",
    "SIZES_BYTES",
    "WIRES",
    "WireCost",
    "WireName",
    "default_count",
    "measure_wire",
    "measure_wires",
]

WireName = Literal["zmq-ipc", "zmq-tcp", "gloo", "unix-socket"]
WIRES: tuple[WireName, ...] = ("zmq-ipc", "zmq-tcp", "gloo", "unix-socket")
SIZES_BYTES = (4 << 10, 64 << 10, 512 << 10, 2 << 20, 16 << 20)
HIGH_WATER_MARK = 8  # messages at each end of a ZeroMQ socket
# Asked of the Unix socket; the kernel gives no more than net.core.wmem_max. With the default of
# 208 KiB the two ends of a large message take turns: three to five times the cost.
SOCKET_BUFFER_BYTES = 4 << 20

_SENDER, _RECEIVER = 0, 1
_LENGTH = struct.Struct("<Q")
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class WireCost:
    """What one message of one size costs on one transport."""

    wire: WireName
    size_bytes: int
    messages: int  # in each repeat
    repeats_us: tuple[float, ...]  # microseconds per message, of each repeat

    @property
    def median_us(self) -> float:
        """Median over the repeats, microseconds per message."""
        return statistics.median(self.repeats_us)


def default_count(size_bytes: int) -> int:
    """Choose the messages of a repeat: 256 MiB in all, but at least 20 and at most 2000."""
    return max(20, min(2000, (256 << 20) // size_bytes))


def measure_wire(
    wire: WireName,
    size_bytes: int,
    *,
    messages: int | None = None,
    repeats: int = 7,
    timeout_s: float = 120.0,
) -> WireCost:
    """Time one transport at one message size; a first repeat is not counted.

    Args:
        wire: the transport.
        size_bytes: payload of a message, a multiple of 4.
        messages: messages per repeat; None takes `default_count(size_bytes)`.
        repeats: timed repeats.
        timeout_s: seconds for everything.
    """
    if size_bytes < _FLOAT_BYTES or size_bytes % _FLOAT_BYTES:
        raise ValueError(f"`size_bytes` must be a positive multiple of 4, but got {size_bytes}")
    count = default_count(size_bytes) if messages is None else messages
    if count < 1 or repeats < 1:
        raise ValueError(
            f"`messages >= 1` and `repeats >= 1` must hold, but got ({count}, {repeats})"
        )
    with tempfile.TemporaryDirectory(prefix="wire-") as folder:
        store = open_store(timeout_s)
        place = _Place(folder=folder, store_port=store.port, timeout_s=timeout_s)
        starts, ends = run_group(
            f"wire {wire}, {size_bytes} bytes",
            _run_end,
            [(wire, place, size_bytes, count, repeats) for _ in range(2)],
            timeout_s=timeout_s,
        )
    return WireCost(
        wire=wire,
        size_bytes=size_bytes,
        messages=count,
        repeats_us=tuple(
            (end - start) / count * 1e6 for start, end in zip(starts, ends, strict=True)
        ),
    )


def measure_wires(
    wires: Sequence[WireName] = WIRES,
    sizes_bytes: Sequence[int] = SIZES_BYTES,
    *,
    messages: int | None = None,
    repeats: int = 7,
    timeout_s: float = 120.0,
) -> list[WireCost]:
    """Time every transport at every size, the transports of one size next to each other."""
    return [
        measure_wire(wire, size, messages=messages, repeats=repeats, timeout_s=timeout_s)
        for size in sizes_bytes
        for wire in wires
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where the two ends meet."""

    folder: str
    store_port: int
    timeout_s: float


# An end is opened by rank; the sender's takes a tensor, the receiver's returns one.
_Send = Callable[[Tensor], None]
_Receive = Callable[[int], Tensor]
_End = tuple[_Send, _Receive]


def _run_end(
    channel: Channel, wire: WireName, place: _Place, size_bytes: int, count: int, repeats: int
) -> list[float]:
    """Return the sender's start or the receiver's end of each timed repeat."""
    open_end: Callable[[Channel, _Place], AbstractContextManager[_End]] = {
        "zmq-ipc": _open_zmq_ipc,
        "zmq-tcp": _open_zmq_tcp,
        "gloo": _open_gloo,
        "unix-socket": _open_unix_socket,
    }[wire]
    floats = size_bytes // _FLOAT_BYTES
    clock: list[float] = []
    channel.at("connecting")
    with open_end(channel, place) as (send, receive):
        for repeat in range(repeats + 1):
            # Element 0 tells the repeat, so a message that strayed from another one is seen.
            tensor = torch.full((floats,), float(repeat))
            channel.barrier(f"repeat {repeat}")
            if channel.rank == _SENDER:
                clock.append(time.perf_counter())
                for _ in range(count):
                    send(tensor)
            else:
                read = 0.0
                for _ in range(count):
                    read += receive(floats)[0].item()
                clock.append(time.perf_counter())
                if read != repeat * count:
                    raise PeerError(
                        f"{repeat * count} must be read, but {read} was: a wrong message"
                    )
        channel.barrier("end")  # the sender closes only after everything was read
    return clock[1:]


@contextmanager
def _open_zmq(channel: Channel, bind_address: str, address_file: Path) -> Iterator[_End]:
    sends = channel.rank == _SENDER
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context(io_threads=1))
        zmq_socket = stack.enter_context(context.socket(zmq.PUSH if sends else zmq.PULL))
        # Set before bind and connect, or they would not hold for that connection.
        zmq_socket.set_hwm(HIGH_WATER_MARK)
        zmq_socket.linger = 0  # a receiver that died must not keep the sender from leaving
        if not sends:
            zmq_socket.bind(bind_address)
            address_file.write_text(zmq_socket.getsockopt_string(zmq.LAST_ENDPOINT))
        channel.barrier("bound")
        if sends:
            zmq_socket.connect(address_file.read_text())

        def send(tensor: Tensor) -> None:
            zmq_socket.send(tensor.numpy().data, copy=False)

        def receive(floats: int) -> Tensor:
            frame = zmq_socket.recv(copy=False)
            return torch.frombuffer(frame.buffer, dtype=torch.float32, count=floats)

        yield send, receive


def _open_zmq_ipc(channel: Channel, place: _Place) -> AbstractContextManager[_End]:
    folder = Path(place.folder)
    return _open_zmq(channel, f"ipc://{folder / 'wire'}", folder / "address")


def _open_zmq_tcp(channel: Channel, place: _Place) -> AbstractContextManager[_End]:
    return _open_zmq(channel, "tcp://127.0.0.1:0", Path(place.folder) / "address")


@contextmanager
def _open_gloo(channel: Channel, place: _Place) -> Iterator[_End]:
    def send(tensor: Tensor) -> None:
        dist.send(tensor, _RECEIVER)

    def receive(floats: int) -> Tensor:
        tensor = torch.empty(floats)  # a new one per message, as on the other wires
        dist.recv(tensor, _SENDER)
        return tensor

    with gloo(place.store_port, channel.rank, 2, place.timeout_s):
        yield send, receive


@contextmanager
def _open_unix_socket(channel: Channel, place: _Place) -> Iterator[_End]:
    path = str(Path(place.folder) / "wire")
    with ExitStack() as stack:
        plain = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        if channel.rank == _RECEIVER:
            plain.bind(path)
            plain.listen(1)
        channel.barrier("bound")
        if channel.rank == _RECEIVER:
            stream, _ = plain.accept()
            stack.enter_context(stream)
        else:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            plain.connect(path)
            stream = plain

        def send(tensor: Tensor) -> None:
            payload = tensor.numpy().data.cast("B")
            header = _LENGTH.pack(len(payload))
            sent = stream.sendmsg([header, payload])
            if sent < len(header):
                stream.sendall(header[sent:])
            stream.sendall(payload[max(0, sent - len(header)) :])

        def receive(floats: int) -> Tensor:
            header = bytearray(_LENGTH.size)
            _read_exactly(stream, memoryview(header))
            [length] = _LENGTH.unpack(header)
            # Memory from torch.empty, not a bytearray: that one is zeroed first.
            tensor = torch.empty(floats)
            payload = tensor.numpy().data.cast("B")
            if length != len(payload):
                raise PeerError(f"{len(payload)} bytes must come, but {length} were announced")
            _read_exactly(stream, payload)
            return tensor

        yield send, receive


def _read_exactly(stream: socket.socket, into: memoryview) -> None:
    while into:
        received = stream.recv_into(into, 0, socket.MSG_WAITALL)
        if not received:
            raise PeerError(f"{len(into)} more bytes must come, but the sender closed")
        into = into[received:]
