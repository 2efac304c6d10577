"""The one virtual clock over the loops of a parameter server, for whichever rules it is given.

worker   reply ──▶ commit … certify ──▶ computes: sample_s × samples, and its delay ──▶ push
link     latency, then bytes/bandwidth, one message after the other each way
server   push ──▶ ServerLoop ──▶ orders, apply_s later

The same code decides and computes as under Ray; so a run is deterministic, thousands of workers
fit in one process, and a second of computation may stand for an hour. Certificates take no virtual
time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.server.ends import Ends
from actors.server.loop import ServerLoop
from actors.server.messages import News, Order, Push, Reply
from actors.server.protocols import ServerRule, Task, WorkerRule
from actors.server.staleness import Bound
from actors.server.worker_loop import WorkerLoop
from raylab.algorithms.server.stragglers import Straggler, parse
from raylab.errors import ConfigError, RaylabError
from raylab.simulator.clock import Clock, Link
from raylab.simulator.meter import VirtualMeter, size_of
from raylab.simulator.outcome import Applied, Simulated
from raylab.simulator.timing import Event, Timing

__all__ = ["run_rules"]


def run_rules(
    server: ServerRule,
    worker: Callable[[int], WorkerRule],
    workers: int,
    ends: Ends,
    *,
    straggler: Straggler | str = "none",
    timing: Timing | None = None,
    bound: Bound | None = None,
    broadcast_every: int = 0,
    epoch_samples: int = 1,
    events: Sequence[Event] = (),
    on_row: Callable[[dict[str, Any]], None] | None = None,
    until: Callable[[Applied], bool] | None = None,
) -> Simulated:
    """Run rules until the end.

    Args:
        server: the server's rule.
        worker: makes the rule of a worker, and anew of one that was lost.
        workers: K.
        ends: of the run.
        straggler: what is wrong with the workers, or its text, with draws of seed 0.
        timing: how long things take; None: as `Timing` has it.
        bound: of the staleness; None: any.
        broadcast_every: T; 0: no broadcasts.
        epoch_samples: n.
        events: what happens on the way.
        on_row: told each row.
        until: told of each message once it is applied; where it says so the run ends, at once and
            without a last certificate.

    Raises:
        ConfigError: nothing ends the run.
        RaylabError: nothing is under way, and the run is not over.
    """
    if ends.samples is None and ends.messages is None:
        raise ConfigError("a run must end by samples or messages, if not by its tolerance")
    if isinstance(straggler, str):
        straggler = parse(straggler, 0)
    machine = _Machine(server, worker, workers, straggler, timing or Timing(), epoch_samples)
    machine.until = until
    machine.loop = ServerLoop(
        server, bound or Bound(), ends, broadcast_every, on_applied=machine.applied
    )
    return machine.run(events, on_row)


@dataclass(slots=True)
class _Process:
    """One worker's process."""

    loop: WorkerLoop
    saved: dict[int, Mapping[str, Any]]
    """What it kept, by step of the checkpoint; its successors have it too."""
    alive: bool = True
    sent_s: float | None = None
    """When it pushed what it waits for an answer to."""


class _Machine:
    """Server, workers and links."""

    loop: ServerLoop
    until: Callable[[Applied], bool] | None = None

    def __init__(
        self,
        server: ServerRule,
        worker: Callable[[int], WorkerRule],
        workers: int,
        straggler: Straggler,
        timing: Timing,
        epoch_samples: int,
    ) -> None:
        self._server = server
        self._worker = worker
        self._workers = workers
        self._straggler = straggler
        self._timing = timing
        self._meter = VirtualMeter(epoch_samples, workers)
        self._clock = Clock()
        self._processes: dict[int, _Process] = {}
        self._up, self._down = Link(timing.bytes_per_s), Link(timing.bytes_per_s)
        self._server_free_s = 0.0
        self._repeating: set[int] = set()
        self._trace: list[Applied] = []
        self._rows = self._deaths = self._checkpoints = 0
        self._enough = False

    def run(
        self, events: Sequence[Event], on_row: Callable[[dict[str, Any]], None] | None
    ) -> Simulated:
        """Run to the end."""
        state, clock = self.loop.state, self._clock
        self.loop.expect(range(self._workers))
        for worker in range(self._workers):
            clock.after(self._straggler.late_s(worker), partial(self._join, worker, None, {}))
        for event in events:
            clock.at(event.time_s, partial(self._happens, event))
        while state.final is None and not self._enough:
            if not clock.step():
                raise RaylabError(
                    f"something must be under way until the run is over, but nothing is after "
                    f"{state.messages} messages, {clock.now:.3g} s"
                )
            for row in state.rows[self._rows :]:
                self._rows += 1
                self._meter.stamp(row, clock.now)
                if on_row is not None:
                    on_row(row)
        return Simulated(
            rows=state.rows,
            model=dict(self._server.weights(state.final or self._server.answer(-1))),
            ended_by="asked" if self._enough else state.ended_by,
            trace=self._trace,
            deaths=self._deaths,
            repeats=state.repeats,
        )

    def applied(self, worker: int, number: int, staleness: int) -> None:
        """A message was."""
        one = Applied(time_s=self._clock.now, worker=worker, number=number, staleness=staleness)
        self._trace.append(one)
        self._enough = self._enough or (self.until is not None and self.until(one))

    # ----------------------------------------------------------------- workers

    def _join(self, worker: int, step: int | None, saved: dict[int, Mapping[str, Any]]) -> None:
        rule = self._worker(worker)
        if step is not None:
            rule.restore(saved[step])
        self._processes[worker] = _Process(WorkerLoop(rule, saved.__setitem__), saved)
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
            again = partial(self._join, worker, step, process.saved)
            self._clock.after(self._timing.restart_s, again)

        self._clock.after(self._timing.detect_s, lost)

    def _receive(self, process: _Process, worker: int, message: Reply | News) -> None:
        if not process.alive:
            return
        if isinstance(message, News):
            process.loop.heard(message)
            return
        if process.sent_s is not None:
            self._meter.blocked_s += self._clock.now - process.sent_s
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
        if self._timing.sample_s is not None:
            compute_s = self._timing.sample_s * (rule.samples() - before)
            compute_s += self._timing.message_s if first else 0.0
        if self._straggler.dies(worker, number) and push is not None:
            self._clock.after(compute_s / 2, partial(self._die, worker))
            return
        compute_s += self._straggler.delay_s(worker, number, compute_s)
        if push is None:
            then = partial(self._compute, process, worker, task)
        else:
            then = partial(self._push, process, worker, push)
        self._clock.after(compute_s, then)

    def _push(self, process: _Process, worker: int, push: Push) -> None:
        if not process.alive:
            return
        process.sent_s = self._clock.now
        times = 2 if worker in self._repeating else 1
        self._repeating.discard(worker)
        for _ in range(times):
            self._clock.after(self._timing.latency_s, partial(self._reach, worker, push))

    # ----------------------------------------------------------------- the server

    def _reach(self, worker: int, push: Push) -> None:
        size_bytes = size_of(push.tensors)
        self._meter.bytes += size_bytes
        when = self._up.passes(self._clock.now, size_bytes)
        self._clock.at(when, partial(self._arrive, worker, push))

    def _arrive(self, worker: int, push: Push) -> None:
        if self._server_free_s > self._clock.now:
            self._clock.at(self._server_free_s, partial(self._arrive, worker, push))
            return
        self._server_free_s = self._clock.now + self._timing.apply_s
        orders = self.loop.arrived(worker, push)
        self._clock.after(self._timing.apply_s, partial(self._send, orders))

    def _send(self, orders: Sequence[Order]) -> None:
        for order in orders:
            process = self._processes[order.worker]
            size_bytes = size_of(order.message.answer)
            if isinstance(order.message, Reply):
                size_bytes += size_of(order.message.opening or ())
            self._meter.bytes += size_bytes
            when = self._down.passes(self._clock.now, size_bytes) + self._timing.latency_s
            receive = partial(self._receive, process, order.worker, order.message)
            self._clock.at(when, receive)

    def _happens(self, event: Event) -> None:
        if event.kind == "death":
            self._die(event.worker)
        elif event.kind == "repeat":
            self._repeating.add(event.worker)
        else:
            self._checkpoints += 1
            self.loop.checkpoint(self._checkpoints)
