"""Groups of plain child processes that never outlive their measurement.

The parent owns every barrier, so that no named semaphore and no file is needed, and so that it
knows where each child is when the time runs out::

    parent                      child 0            child 1
      |  <---- arrive("ready") --  |                  |
      |  <---- arrive("ready") ------------------------|
      |  ----- "ready" ---------> |                  |      1. released when all have arrived
      |  ----- "ready" --------------------------->  |
      |  <---- result / error ---  |  ...             |      2. any error: all are killed
     kill                                                    3. always, in a `finally`

Errors: `PeerError` > `PeerFailedError` (a child raised or died), `PeerTimeoutError` (a child hung).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

__all__ = ["Channel", "PeerError", "PeerFailedError", "PeerTimeoutError", "run_group"]

Result = TypeVar("Result")

_EXIT_GRACE_S = 10.0


class PeerError(RuntimeError):
    """A measurement gave no result."""


class PeerFailedError(PeerError):
    """A child raised an exception or died."""


class PeerTimeoutError(PeerError):
    """A measurement did not end in its time."""


class Channel:
    """A child's end of the line to its parent: barriers and the final answer."""

    def __init__(self, connection: Connection, rank: int) -> None:
        self.rank = rank
        self._connection = connection

    def arrive(self, name: str) -> None:
        """Say that this child has reached barrier `name`, and go on."""
        self._connection.send(("arrive", name))

    def released(self, name: str) -> bool:
        """Tell, without waiting, whether every child has reached barrier `name`."""
        if not self._connection.poll(0):
            return False
        self._receive(name)
        return True

    def barrier(self, name: str) -> None:
        """Wait until every child of the group has reached barrier `name`."""
        self.arrive(name)
        self._receive(name)

    def at(self, name: str) -> None:
        """Say what this child does next; a time-out reports it."""
        self._connection.send(("at", name))

    def _receive(self, name: str) -> None:
        released = self._connection.recv()
        if released != name:
            raise PeerError(f"barrier {name!r} expected, but {released!r} was released")


def run_group(
    what: str,
    target: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    *,
    timeout_s: float,
    threads: int = 1,
    extra_environment: Mapping[str, str] | None = None,
) -> list[Result]:
    """Run `target(channel, *arguments[rank])` in one fresh process per rank.

    The thread counts stand in the children's environment before torch is imported there. The
    parent's environment is changed while children start, then put back: call from one thread only.

    Args:
        what: name of the measurement, for errors.
        target: an importable function; its result must pickle.
        arguments: one tuple per rank.
        timeout_s: seconds for everything, start-up included.
        threads: threads of each child, for torch and for OpenMP.
        extra_environment: further variables of the children.

    Returns: the results by rank.

    Raises:
        PeerFailedError: a child raised (its traceback is in the message) or died.
        PeerTimeoutError: the time ran out; the message says where each child was.
    """
    context = multiprocessing.get_context("spawn")
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Without it gloo looks up the host's name, which need not resolve.
        "GLOO_SOCKET_IFNAME": _loopback_interface(),
        **(extra_environment or {}),
    }
    processes: list[BaseProcess] = []
    connections: list[Connection] = []
    try:
        with _environment(environment):
            for rank, arguments_of_rank in enumerate(arguments):
                ours, theirs = context.Pipe()
                connections.append(ours)
                process = context.Process(
                    target=_child_main,
                    args=(theirs, rank, threads, target, arguments_of_rank),
                    name=f"{what}, rank {rank}",
                    daemon=True,
                )
                process.start()
                processes.append(process)
                theirs.close()
        return _collect(what, processes, connections, timeout_s)
    finally:
        _end(processes, connections)


def _child_main(
    connection: Connection,
    rank: int,
    threads: int,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    _die_with_parent()
    torch.set_num_threads(threads)
    try:
        connection.send(("result", target(Channel(connection, rank), *arguments)))
    except BaseException:  # the parent must hear of every end, then raises it
        connection.send(("error", traceback.format_exc()))
    connection.close()


def _die_with_parent() -> None:
    """Leave at once if the parent is killed: nobody else would end this process."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise PeerError("a child process must have a parent")

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _collect(
    what: str,
    processes: Sequence[BaseProcess],
    connections: Sequence[Connection],
    timeout_s: float,
) -> list[Any]:
    deadline = time.monotonic() + timeout_s
    results: dict[int, Any] = {}
    where = dict.fromkeys(range(len(processes)), "starting")
    arrived: dict[str, set[int]] = {}
    while len(results) < len(processes):
        waiting = {connections[r]: r for r in range(len(processes)) if r not in results}
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            hung = "; ".join(f"rank {r} at {where[r]!r}" for r in waiting.values())
            raise PeerTimeoutError(f"{what}: no result within {timeout_s:g} s, waiting for {hung}")
        for connection, rank in waiting.items():
            if connection not in ready:
                continue
            try:
                kind, value = connection.recv()
            except (EOFError, ConnectionResetError) as error:
                # The line is closed a moment before the exit code is known.
                processes[rank].join(1.0)
                raise PeerFailedError(
                    f"{what}: rank {rank} died at {where[rank]!r}, "
                    f"exit code {processes[rank].exitcode}"
                ) from error
            if kind == "error":
                raise PeerFailedError(f"{what}: rank {rank} failed at {where[rank]!r}:\n{value}")
            if kind == "result":
                results[rank] = value
                continue
            where[rank] = value
            if kind == "arrive":
                arrived.setdefault(value, set()).add(rank)
                if len(arrived[value]) == len(processes):
                    del arrived[value]
                    for other in connections:
                        other.send(value)
    for rank, process in enumerate(processes):
        process.join(_EXIT_GRACE_S)
        if process.is_alive():
            raise PeerTimeoutError(
                f"{what}: rank {rank} gave its result but still runs {_EXIT_GRACE_S:g} s later"
            )
        if process.exitcode != 0:
            raise PeerFailedError(
                f"{what}: rank {rank} gave its result, then left with exit code {process.exitcode}"
            )
    return [results[rank] for rank in range(len(processes))]


def _end(processes: Sequence[BaseProcess], connections: Sequence[Connection]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join(_EXIT_GRACE_S)
        if process.exitcode is None:
            raise PeerTimeoutError(f"process {process.pid} ({process.name}) survived being killed")
        process.close()
    for connection in connections:
        connection.close()


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _loopback_interface() -> str:
    for _, name in socket.if_nameindex():
        if name.startswith("lo"):
            return name
    raise PeerError("a loopback interface must exist, but no interface is named lo*")
