"""The Ray shell of a parameter server's worker: it opens boxes, runs the runner."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch

from actors.errors import MechanismError
from actors.groups.member import GROUPS, Member
from actors.groups.part_writer import Keeping, resumed
from actors.server.exchange import SERVER
from actors.server.protocols import Cut, WorkerRule
from actors.server.ray_metrics import WorkerMetrics
from actors.server.shard_log import shard_member
from actors.server.slices import Slices
from actors.server.worker_loop import WorkerLoop
from actors.server.worker_runner import Straggler, WorkerRunner

__all__ = ["Supply", "WorkerActor", "WorkerMember", "WorkerProgram", "WorkerRuleFactory"]

Supply = Callable[[], Any]
"""Makes what a worker's rule is made from, e.g. the objective of its samples."""
WorkerRuleFactory = Callable[[Any], WorkerRule]
"""Makes a rule from what was supplied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProgram:
    """How fast a worker is, and how many servers it has.

    Args:
        straggler: that slows it down.
        sample_s: modelled time of a sample's computation; None: what it really takes.
        servers: shards of w.
        cut: what it sends to several.
    """

    straggler: Straggler | None = None
    sample_s: float | None = None
    servers: int = 1
    cut: Cut | None = None


class WorkerMember(Member):
    """A worker of a parameter server, in the process of its actor.

    Args:
        worker: from 0.
        threads: of torch's operators in this process.
        seed: of the process's global generators.
        tags: `method` and `run`, of the worker's metrics.
    """

    def __init__(self, worker: int, threads: int, seed: int, tags: Mapping[str, str]) -> None:
        super().__init__(worker + 1, f"worker {worker}", threads, seed)
        self._runner: WorkerRunner | None = None
        self._metrics = WorkerMetrics(worker, tags)
        self._worker = worker
        self._supplies: Any = None
        self._rule: WorkerRule | None = None

    def supply(self, make: Supply, question: Callable[[Any], Any]) -> Any:
        """Make what the rule will be made from; return what `question` finds out about it."""
        torch.set_num_threads(self._threads)
        self._rule = None
        self._supplies = make()
        return question(self._supplies)

    def load(self, rule: WorkerRuleFactory, keeping: Keeping | None) -> None:
        """Build the worker's rule, and let it go on from a checkpoint."""
        self._rule = rule(self._supplies)
        part = resumed(keeping)
        if part is not None:
            self._rule.restore(part["rule"])

    def examine(self, question: Callable[[Any], Any]) -> Any:
        """Return what `question` finds out about the rule."""
        return question(self._rule)

    def prepare(self, make: Supply, rule: WorkerRuleFactory, keeping: Keeping | None) -> None:
        """Supply and load: for a process that comes in the place of another."""
        self.supply(make, lambda _: None)
        self.load(rule, keeping)

    def run(self, program: WorkerProgram, keeping: Keeping | None) -> None:
        """Run to the end, or until `stop`."""
        rule = self._rule
        if rule is None or ("answers", SERVER) not in self._inboxes:
            raise MechanismError(f"{self._title} has no rule or no links yet: load and wire it")
        members = [shard_member(shard) for shard in range(program.servers)]
        boxes = [(self._inboxes["answers", m], self._outboxes["pushes", m]) for m in members]
        (inbox, outbox), *others = boxes
        with self._keeping(keeping) as writer:

            def save(step: int, state: Mapping[str, Any]) -> None:
                if writer is not None:
                    writer(step, {"worker": self._worker, "step": step, "rule": dict(state)})

            runner = WorkerRunner(
                WorkerLoop(rule, save),
                self._worker,
                inbox,
                outbox,
                nap=self._stop.wait,
                straggler=program.straggler,
                sample_s=program.sample_s,
                die=_die,
                slices=None if program.cut is None else Slices(program.cut, len(others)),
                shards=others,
            )
            self._metrics.begin()
            self._runner = runner
            runner.run(self._stop.is_set)

    @ray.method(concurrency_group="control")
    def progress(self) -> list[tuple[int, Any]]:
        """Return the parts of checkpoints that were written since the last call."""
        if self._runner is not None:
            self._metrics.publish(self._runner)
        return self._news()[1]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


WorkerActor: Any = ray.remote(concurrency_groups=GROUPS)(WorkerMember)  # type: ignore[call-overload]
"""`WorkerMember` as a Ray actor: options, then `remote(worker, threads, seed, tags)`."""
