"""Claim: between a server and its workers dense messages, 47,236 float64 each way, and sparse ones
(indices and values up, what has changed of w down) come at 0.8 or more of the rate that the wire
alone has.

    python -m benchmarks.server_messages

The product's actors, mailboxes and loops with rules that compute next to nothing (the server adds a
message to w), beside bare ZeroMQ ipc sockets between as many plain processes, which send the same
bytes in the same pattern: a push, then nothing before its answer. Both interleaved, medians over
the repeats, with what a message takes of the processor in the server's process. A sparse message
has the coordinates of `--rows` rows, 0.16 % dense each.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.server.company import Company
from actors.server.ends import Ends
from actors.server.exchange import Part
from actors.server.protocols import Certificate, Task
from actors.server.server_actor import ServerNews, ServerProgram
from actors.server.server_group import ServerGroup
from actors.server.staleness import Bound
from actors.units import Tensors
from benchmarks.peers.request_reply import Exchange, measure_exchange
from benchmarks.session import ray_session

DENSITY = 0.0016
Figures = tuple[float, float]
"""Messages a second, the server's processor seconds for each."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent: `rows` rows' coordinates, None: all of them."""

    dim: int
    rows: int | None
    workers: int
    messages: int

    @property
    def skipped(self) -> int:
        """Return the messages before the clock begins."""
        return self.messages // 5


@dataclass(frozen=True)
class Phase:
    """One for the whole run."""

    number: int = 0
    kind: str = "add"
    gather: bool = False
    messages: int | None = None
    pieces: int = 1


class AddingServer:
    """Adds messages to w, and keeps the time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._w = np.zeros(load.dim)
        self._places: Tensor | None = None
        self._count = 0
        self._began = self._ended = (0.0, 0.0)

    def phase(self) -> Phase:
        """Return the one there is."""
        return Phase()

    def opening(self) -> Tensors:
        """Return nothing."""
        return ()

    def answer(self, worker: int) -> Tensors:  # noqa: ARG002
        """Return w; nobody writes to it while somebody has it."""
        return (torch.from_numpy(self._w),)

    def apply(self, worker: int, message: Tensors, staleness: int) -> None:  # noqa: ARG002
        """Add it to w, or to a new one, if the one before is on its way to somebody."""
        if sys.getrefcount(self._w) > 2:
            self._w = self._w.copy()
        if len(message) == 1:
            self._w += message[0].numpy()  # type: ignore[union-attr]
        else:
            where, values = message
            self._w[where.numpy().astype(np.intp)] += values.numpy()  # type: ignore[union-attr]
        self._places = message[0] if len(message) == 2 else None
        self._count += 1
        if self._count == self._load.skipped:
            self._began = time.perf_counter(), time.process_time()
        elif self._count == self._load.messages:
            self._ended = time.perf_counter(), time.process_time()

    def changed(self) -> Tensor | None:
        """Return which coordinates the last message has changed; None: any."""
        return self._places

    def certify(self, parts: Mapping[int, Certificate], answer: Tensors) -> dict[str, float]:  # noqa: ARG002
        """Return nothing."""
        return {}

    def judge(self, figures: Mapping[str, float]) -> None:
        """Find nothing wrong."""

    def mark(self, worker: int, number: int) -> None:
        """Remember nothing."""

    def weights(self, answer: Tensors) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the rate, in messages a second, and the processor seconds of each."""
        timed = self._load.messages - self._load.skipped
        passed, worked = (end - begin for begin, end in zip(self._began, self._ended, strict=True))
        return {"rate": torch.tensor([timed / passed, worked / timed], dtype=torch.float64)}

    def report(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class AddingWorker:
    """Has its messages ready."""

    def __init__(self, load: Load, worker: int) -> None:
        self._messages = messages_of(load, worker)
        self._next = 0
        self._read = 0.0

    def begin(self, phase: Any, opening: Tensors) -> None:
        """Begin."""

    def work(self, task: Task, answer: Tensors, piece: int) -> None:  # noqa: ARG002
        """Look at w."""
        self._read += float(answer[0][-1])  # type: ignore[index]

    def message(self) -> Tensors:
        """Return the next one."""
        self._next = (self._next + 1) % len(self._messages)
        return self._messages[self._next]

    def commit(self) -> None:
        """Go on."""

    def discard(self) -> None:
        """Go on."""

    def certify(self, answer: Tensors) -> Part:  # noqa: ARG002
        """Return nothing."""
        return Part(values={}, tensors={})

    def mark(self, number: int, good: int | None) -> None:
        """Remember nothing."""

    def samples(self) -> int:
        """Return 1."""
        return 1


def messages_of(load: Load, worker: int) -> list[Tensors]:
    """Return some messages of a worker."""
    draws = np.random.default_rng(worker)
    if load.rows is None:
        return [(torch.from_numpy(draws.standard_normal(load.dim)),)]
    each = round(DENSITY * load.dim)
    found: list[Tensors] = []
    for _ in range(16):
        where = np.unique(draws.integers(0, load.dim, size=each * load.rows))
        values = torch.from_numpy(draws.standard_normal(len(where)))
        found.append((torch.from_numpy(where.astype(np.int32)), values))
    return found


def _nothing(supplied: Any) -> Any:
    return supplied


def _adding_worker(load: Load, worker: int, supplied: Any) -> AddingWorker:  # noqa: ARG001
    return AddingWorker(load, worker)


def product(group: ServerGroup, load: Load) -> tuple[tuple[float, float], float]:
    """Return messages a second with the server's processor seconds for each, and the bytes of an
    answer, in the mean.
    """
    workers = range(load.workers)
    rows: list[dict[str, Any]] = []
    company = Company(
        server=functools.partial(AddingServer, load),
        supplies={k: functools.partial(_nothing, None) for k in workers},
        workers={k: functools.partial(_adding_worker, load, k) for k in workers},
        program=ServerProgram(
            workers=tuple(workers),
            bound=Bound(),
            ends=Ends(messages=load.messages),
        ),
    )

    def watch(news: ServerNews) -> int:
        rows.extend(news.rows)
        return -1

    group.supply(company.supplies, _nothing)
    group.load(company)
    group.run(company, watch, _nobody)
    first, last = rows[0], rows[-1]
    pushes = last["messages"] - first["messages"]
    up = statistics.mean(_bytes(m) for k in workers for m in messages_of(load, k))
    down = (last["bytes"] - first["bytes"]) / pushes - up
    rate, worked = group.weights()["rate"].tolist()
    return (rate, worked), down


def _nobody(worker: int, error: Exception) -> Any:
    raise RuntimeError(f"worker {worker} was lost") from error


def _bytes(tensors: Tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def bare(load: Load, down_bytes: float) -> tuple[float, float]:
    """Return the same between plain processes, whose server answers with so many bytes."""
    exchange = Exchange(
        messages=load.messages,
        skipped=load.skipped,
        sizes=[
            [[t.nbytes for t in message if t is not None] for message in messages_of(load, worker)]
            for worker in range(load.workers)
        ],
        answer_bytes=round(down_bytes),
    )
    return measure_exchange(exchange)


def told(name: str, ours: Sequence[Figures], theirs: Sequence[Figures], down: float) -> str:
    """Return a row of the table."""
    ratios = [a[0] / b[0] for a, b in zip(ours, theirs, strict=True)]
    cells = []
    for each in (ours, theirs):
        rates = [rate for rate, _ in each]
        worked = 1e6 * statistics.median(seconds for _, seconds in each)
        median = statistics.median(rates)
        cells.append(f"{median:,.0f} ({min(rates):,.0f}–{max(rates):,.0f}), {worked:,.0f} µs")
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return f"| {name} | {down / 1e3:,.0f} | {cells[0]} | {cells[1]} | {ratio} |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=47_236)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs="*", default=[10, 100], help="of sparse messages")
    parser.add_argument("--messages", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    loads = {
        "dense" if rows is None else f"sparse, {rows} rows": Load(
            dim=options.dim, rows=rows, workers=options.workers, messages=options.messages
        )
        for rows in (None, *options.rows)
    }
    ours: dict[str, list[Figures]] = {name: [] for name in loads}
    theirs: dict[str, list[Figures]] = {name: [] for name in loads}
    downs: dict[str, float] = {}
    with (
        ray_session(options.workers + 1),
        ServerGroup(
            options.workers,
            server={"CPU": 1.0},
            worker={"CPU": 1.0},
            threads=1,
            seed=0,
            wait_s=60.0,
        ) as group,
    ):
        for _ in range(options.repeats):
            for name, load in loads.items():
                found, downs[name] = product(group, load)
                ours[name].append(found)
                theirs[name].append(bare(load, downs[name]))
                print(f"{name}: {found} beside {theirs[name][-1]}", file=sys.stderr)
    print("| messages | KB of an answer | raylab, messages/s | bare sockets | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name in loads:
        print(told(name, ours[name], theirs[name], downs[name]))


if __name__ == "__main__":
    main()
