"""A parameter server under virtual time: the loops and rules of a real run, and a clock of events.

worker   reply ──▶ commit … certify ──▶ computes: sample_s × samples, and its delay ──▶ push
link     latency, then bytes/bandwidth, one message after the other each way
server   push ──▶ ServerLoop ──▶ orders, apply_s later

The same code decides and computes as under Ray; so a run is deterministic, thousands of workers
fit in one process, and a second of computation may stand for an hour. Certificates take no virtual
time.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from actors.protocols import Tensors
from actors.server import Bound, Ends, ServerLoop
from actors.server_messages import News, Order, Push, Reply
from actors.server_protocols import Task
from actors.server_worker import WorkerLoop
from raylab.algorithms.parameter_server import ServerSettings, server_rule, worker_rule
from raylab.algorithms.parameter_server import bound as bound_of
from raylab.algorithms.stragglers import Straggler
from raylab.algorithms.stragglers import parse as parse_straggler
from raylab.errors import ConfigError, RaylabError
from raylab.problems.objective import Objective, Vector
from raylab.simulator.timing import Event, Timing

__all__ = ["Applied", "Simulated", "simulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One message that was applied.

    Args:
        time_s: when.
        worker: of whom.
        number: of the task.
        staleness: in updates.
    """

    time_s: float
    worker: int
    number: int
    staleness: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What a run leaves behind.

    Args:
        rows: one a certificate, as a real run's, with virtual time_s.
        weights: w, (dim,).
        ended_by: tolerance, epochs or messages.
        trace: what was applied, in its order.
        deaths: workers that were lost.
        repeats: pushes that the server knew already.
    """

    rows: list[dict[str, Any]]
    weights: Vector
    ended_by: str
    trace: list[Applied]
    deaths: int
    repeats: int

    @property
    def figures(self) -> dict[str, Any]:
        """The last row."""
        return self.rows[-1]


def simulate(
    settings: ServerSettings,
    objectives: Sequence[Objective],
    *,
    straggler: Straggler | str = "none",
    timing: Timing | None = None,
    ends: Ends,
    broadcast_every: int | None = None,
    bound: Bound | None = None,
    events: Sequence[Event] = (),
    w0: Vector | None = None,
) -> Simulated:
    """Run a method under virtual time.

    Args:
        settings: of the method.
        objectives: one a worker, in the order of their samples.
        straggler: what is wrong with the workers, or its text.
        timing: how long things take; None: as `Timing` has it.
        ends: of the run.
        broadcast_every: T; None: as the settings have it.
        bound: of the staleness; None: as the settings have it.
        events: what happens on the way.
        w0: w to begin with; None: the objectives', or zero for methods with duals.

    Raises:
        ConfigError: the objectives are not one a worker, or nothing ends the run.
        RaylabError: nothing is under way, and the run is not over.
    """
    if len(objectives) != settings.workers:
        raise ConfigError(
            f"every worker needs an objective, but got {len(objectives)} for "
            f"workers={settings.workers}"
        )
    if ends.samples is None and ends.messages is None:
        raise ConfigError("a run must end by samples or messages, if not by its tolerance")
    if w0 is None:
        w0 = np.zeros(settings.dim) if settings.traits.duals else objectives[0].initial()
    if isinstance(straggler, str):
        straggler = parse_straggler(straggler, settings.seed)
    if bound is None:
        given = bound_of(settings)
        bound = Bound(updates=given.updates, late=given.late)
    simulation = _Simulation(
        settings,
        objectives,
        straggler,
        timing or Timing(),
        w0,
        bound,
        ends,
        settings.broadcast if broadcast_every is None else broadcast_every,
    )
    return simulation.run(events)


@dataclass(slots=True)
class _Process:
    """One worker's process."""

    loop: WorkerLoop
    saved: dict[int, Mapping[str, Any]]
    """What it kept, by step of the checkpoint; its successors have it too."""
    alive: bool = True
    sent_s: float | None = None
    """When it pushed what it waits for an answer to."""


@dataclass(slots=True)
class _Link:
    """One way of the server's link."""

    bytes_per_s: float
    free_s: float = 0.0

    def passes(self, now: float, size_bytes: int) -> float:
        """Return when a message that comes now has passed."""
        self.free_s = max(now, self.free_s) + size_bytes / self.bytes_per_s
        return self.free_s


class _Simulation:
    def __init__(
        self,
        settings: ServerSettings,
        objectives: Sequence[Objective],
        straggler: Straggler,
        timing: Timing,
        w0: Vector,
        bound: Bound,
        ends: Ends,
        broadcast_every: int,
    ) -> None:
        self.settings = settings
        self.objectives = objectives
        self.straggler = straggler
        self.timing = timing
        self.now = 0.0
        self.trace: list[Applied] = []
        self.loop = ServerLoop(
            server_rule(settings, w0), bound, ends, broadcast_every, on_applied=self._applied
        )
        self._processes: dict[int, _Process] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._up, self._down = _Link(timing.bytes_per_s), _Link(timing.bytes_per_s)
        self._server_free_s = 0.0
        self._repeating: set[int] = set()
        self._stamped = self._deaths = self._bytes = self._checkpoints = 0
        self._blocked_s = 0.0
        self._previous = (0.0, 0)

    def run(self, events: Sequence[Event]) -> Simulated:
        self.loop.expect(range(self.settings.workers))
        for worker in range(self.settings.workers):
            self._after(self.straggler.late_s(worker), partial(self._join, worker, None, {}))
        for event in events:
            self._after(event.time_s, partial(self._happens, event))
        while self.loop.final is None:
            if not self._queue:
                raise RaylabError(
                    f"something must be under way until the run is over, but nothing is after "
                    f"{self.loop.messages} messages, {self.now:.3g} s"
                )
            self.now, _, action = heapq.heappop(self._queue)
            action()
            self._stamp()
        answer = self.loop.final
        return Simulated(
            rows=self.loop.rows,
            weights=self.loop.rule.weights(answer)["w"].numpy(),
            ended_by=self.loop.ended_by,
            trace=self.trace,
            deaths=self._deaths,
            repeats=self.loop.repeats,
        )

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), action))

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), action))

    # ----------------------------------------------------------------- workers

    def _join(self, worker: int, step: int | None, saved: dict[int, Mapping[str, Any]]) -> None:
        rule = worker_rule(self.settings, self.objectives[worker], worker)
        if step is not None:
            rule.restore(saved[step])
        loop = WorkerLoop(rule, saved.__setitem__)
        self._processes[worker] = _Process(loop, saved)
        self._send(self.loop.joined(worker))

    def _die(self, worker: int) -> None:
        process = self._processes.get(worker)
        if process is None or not process.alive:
            return
        process.alive = False
        self._deaths += 1
        step = max(process.saved, default=None)

        def lost() -> None:
            self._send(self.loop.lost(worker, step))
            self._after(self.timing.restart_s, lambda: self._join(worker, step, process.saved))

        self._after(self.timing.detect_s, lost)

    def _receive(self, process: _Process, worker: int, message: Reply | News) -> None:
        if not process.alive:
            return
        if isinstance(message, News):
            process.loop.heard(message)
            return
        if process.sent_s is not None:
            self._blocked_s += self.now - process.sent_s
            process.sent_s = None
        proof = process.loop.replied(message)
        if proof is not None:
            self._send(self.loop.proved(worker, proof))
        if message.task is not None:
            self._compute(process, worker, message.task)

    def _compute(self, process: _Process, worker: int, task: Task) -> None:
        """Compute one piece of a message, which takes its time from now on."""
        if not process.alive:
            return
        rule, number = process.loop.rule, task.number
        first = process.loop.pieces_left == task.phase.pieces
        before = 0 if first else rule.samples()
        began = time.perf_counter()
        push = process.loop.compute()
        compute_s = time.perf_counter() - began
        if self.timing.sample_s is not None:
            compute_s = self.timing.sample_s * (rule.samples() - before)
        if self.straggler.dies(worker, number) and push is not None:
            self._after(compute_s / 2, lambda: self._die(worker))
            return
        compute_s += self.straggler.delay_s(worker, number, compute_s)
        if push is None:
            self._after(compute_s, partial(self._compute, process, worker, task))
        else:
            self._after(compute_s, lambda: self._push(process, worker, push))

    def _push(self, process: _Process, worker: int, push: Push) -> None:
        if not process.alive:
            return
        process.sent_s = self.now
        times = 2 if worker in self._repeating else 1
        self._repeating.discard(worker)
        for _ in range(times):
            self._after(self.timing.latency_s, lambda: self._reach(worker, push))

    # ----------------------------------------------------------------- the server

    def _reach(self, worker: int, push: Push) -> None:
        size_bytes = _size(push.tensors)
        self._bytes += size_bytes
        self._at(self._up.passes(self.now, size_bytes), lambda: self._arrive(worker, push))

    def _arrive(self, worker: int, push: Push) -> None:
        if self._server_free_s > self.now:
            self._at(self._server_free_s, lambda: self._arrive(worker, push))
            return
        self._server_free_s = self.now + self.timing.apply_s
        orders = self.loop.arrived(worker, push)
        self._after(self.timing.apply_s, lambda: self._send(orders))

    def _send(self, orders: Sequence[Order]) -> None:
        for order in orders:
            process = self._processes[order.worker]
            size_bytes = _size(order.message.answer)
            if isinstance(order.message, Reply):
                size_bytes += _size(order.message.opening or ())
            self._bytes += size_bytes
            when = self._down.passes(self.now, size_bytes) + self.timing.latency_s
            self._at(when, partial(self._receive, process, order.worker, order.message))

    def _applied(self, worker: int, number: int, staleness: int) -> None:
        self.trace.append(
            Applied(time_s=self.now, worker=worker, number=number, staleness=staleness)
        )

    def _happens(self, event: Event) -> None:
        if event.kind == "death":
            self._die(event.worker)
        elif event.kind == "repeat":
            self._repeating.add(event.worker)
        else:
            self._checkpoints += 1
            self.loop.checkpoint(self._checkpoints)

    def _stamp(self) -> None:
        """Give the new rows their times."""
        for row in self.loop.rows[self._stamped :]:
            then, samples = self._previous
            passed = self.now - then
            row |= {
                "time_s": self.now,
                "epoch": row["samples_seen"] / self.settings.n,
                "bytes": self._bytes,
                "blocked_s": self._blocked_s,
                "samples_per_s": (row["samples_seen"] - samples) / passed if passed > 0 else 0.0,
            }
            self._previous = (self.now, row["samples_seen"])
            self._stamped += 1


def _size(tensors: Tensors) -> int:
    return sum(_bytes(tensor) for tensor in tensors if tensor is not None)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
