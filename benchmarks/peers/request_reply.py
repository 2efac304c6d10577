"""Messages per second on bare ZeroMQ ipc sockets between a server and workers, all plain processes.

A worker sends, and sends no more before its answer has come::

    worker k   |send|      |recv|send|       elapsed = the server's last message
    server          |recv|send|                       - its first one after `skipped`
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from benchmarks.peers.processes import Channel, run_group

__all__ = ["Exchange", "measure_exchange"]

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """What is exchanged.

    Args:
        messages: that the server takes, of all workers.
        skipped: of them before the clock begins.
        sizes: bytes of the parts of a message, by worker, each sent in turn.
        answer_bytes: of the server's answer.
    """

    messages: int
    skipped: int
    sizes: Sequence[Sequence[Sequence[int]]]
    answer_bytes: int


def measure_exchange(exchange: Exchange, *, timeout_s: float = 300.0) -> tuple[float, float]:
    """Return messages a second, as the server counts them, and its processor seconds a message."""
    with tempfile.TemporaryDirectory(prefix="wire-") as folder:
        ends = len(exchange.sizes) + 1
        rates = run_group(
            "request and reply", _run_end, [(folder, exchange)] * ends, timeout_s=timeout_s
        )
    return rates[0]


def _run_end(channel: Channel, folder: str, exchange: Exchange) -> tuple[float, float]:
    context = zmq.Context(io_threads=1)
    try:
        if channel.rank == 0:
            return _serve(channel, context, Path(folder), exchange)
        return _ask(channel, context, Path(folder), exchange.sizes[channel.rank - 1])
    finally:
        context.destroy(linger=0)


def _serve(channel: Channel, context: Any, folder: Path, exchange: Exchange) -> tuple[float, float]:
    poller = zmq.Poller()
    for worker in range(len(exchange.sizes)):
        socket = context.socket(zmq.PAIR)
        socket.bind(f"ipc://{folder / str(worker)}")
        poller.register(socket, zmq.POLLIN)
    channel.barrier("bound")
    answer = np.ones(exchange.answer_bytes, dtype=np.uint8)
    count, began, worked, read = 0, 0.0, 0.0, 0
    while count < exchange.messages:
        for socket, _ in poller.poll():
            frames = socket.recv_multipart(copy=False)
            read += frames[-1].buffer[-1]
            count += 1
            if count == exchange.skipped:
                began, worked = time.perf_counter(), time.process_time()
            socket.send(answer.data, copy=False)
    timed = count - exchange.skipped
    rate = timed / (time.perf_counter() - began)
    worked = (time.process_time() - worked) / timed
    for socket, _ in poller.sockets:
        socket.send(b"")
    channel.barrier("end")
    return rate, worked


def _ask(
    channel: Channel, context: Any, folder: Path, sizes: Sequence[Sequence[int]]
) -> tuple[float, float]:
    messages = [[np.ones(size, dtype=np.uint8).data for size in parts] for parts in sizes]
    socket = context.socket(zmq.PAIR)
    channel.barrier("bound")
    socket.connect(f"ipc://{folder / str(channel.rank - 1)}")
    number, read = 0, 0
    while True:
        socket.send_multipart(messages[number % len(messages)], copy=False)
        number += 1
        frame = socket.recv(copy=False)
        if not len(frame):
            break
        read += frame.buffer[-1]
    channel.barrier("end")
    return 0.0, float(read)
