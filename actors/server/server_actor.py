"""The Ray shell of a parameter server: it opens boxes, runs the runner, answers questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import MechanismError
from actors.groups.errands import Errands
from actors.groups.member import GROUPS, Member
from actors.groups.part_writer import Keeping, resumed
from actors.server.ends import Ends
from actors.server.exchange import SERVER
from actors.server.loop import ServerLoop
from actors.server.protocols import ServerRule
from actors.server.ray_metrics import ServerMetrics
from actors.server.seat import Seat
from actors.server.server_runner import ServerRunner
from actors.server.shard_links import ShardLinks
from actors.server.shard_log import shard_member
from actors.server.staleness import Bound
from actors.wires.doorbell import Doorbell

__all__ = ["ServerActor", "ServerMember", "ServerNews", "ServerProgram", "ServerRuleFactory"]

ServerRuleFactory = Callable[[], ServerRule]
_PATIENCE_S = 0.2
_CREDITS_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProgram:
    """The numbers of a server.

    Args:
        workers: that it begins with.
        bound: of the staleness.
        ends: of the run.
        broadcast_every: updates between two broadcasts of w; 0: none.
        epoch_samples: n.
        checkpoints: when to save, counted in updates.
        adopt: called with the rule once it is restored, where the workers have changed since.
        late: workers that join later, and by how many seconds.
        servers: shards of w, of which this server has the first.
    """

    workers: tuple[int, ...]
    bound: Bound
    ends: Ends
    broadcast_every: int = 0
    epoch_samples: int = 1
    checkpoints: CheckpointPlan = field(default_factory=CheckpointPlan)
    adopt: Callable[[Any], None] | None = None
    late: Mapping[int, float] = field(default_factory=dict)
    servers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerNews:
    """What the server has to tell since it was last asked.

    Args:
        samples: looked at, in all.
        messages: applied, in all.
        rows: of metrics.
        written: parts of checkpoints, each with its step.
        cut: workers whose link has ended, and how.
    """

    samples: int = 0
    messages: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    written: list[tuple[int, Any]] = field(default_factory=list)
    cut: list[tuple[int, str]] = field(default_factory=list)


class ServerMember(Member):
    """A parameter server, in the process of its actor.

    Args:
        threads: of torch's operators in this process.
        seed: of the process's global generators.
        tags: `method` and `run`, of the server's metrics.
    """

    def __init__(self, threads: int, seed: int, tags: Mapping[str, str]) -> None:
        super().__init__(SERVER, "the server", threads, seed)
        self._metrics = ServerMetrics(tags)
        self._bell: Doorbell[tuple[str, int]] = Doorbell()
        self._errands = Errands(self._bell.ring)
        self._rule: ServerRule | None = None
        self._runner: ServerRunner | None = None

    def load(self, rule: ServerRuleFactory) -> None:
        """Build the server's rule."""
        torch.set_num_threads(self._threads)
        self._runner = None
        self._rule = rule()
        # What is asked before the loop runs waits for it.
        self._errands.begin()

    def run(self, program: ServerProgram, keeping: Keeping | None) -> str:
        """Run to the end, or until `stop`; return why the run has ended."""
        try:
            return self._run(program, keeping)
        finally:
            self._errands.end()

    def _run(self, program: ServerProgram, keeping: Keeping | None) -> str:
        if self._rule is None:
            raise MechanismError("the server has no rule yet: call load first")
        part = resumed(keeping)
        shards = self._shards(program.servers) if program.servers > 1 else None
        rule = self._rule if shards is None else shards.lead
        loop = ServerLoop(rule, program.bound, program.ends, program.broadcast_every)
        with self._keeping(keeping) as writer:
            runner = ServerRunner(
                loop,
                self._rows.append,
                epoch_samples=program.epoch_samples,
                bell=self._bell,
                checkpoints=program.checkpoints,
                save=writer,
                shards=shards,
            )
            seats = {worker: self._seat(worker) for worker in program.workers}
            runner.start(seats, part, program.adopt, program.late)
            self._metrics.begin(runner)
            self._runner = runner
            while not runner.finished and not self._stop.is_set():
                runner.advance(_PATIENCE_S)
                self._errands.carry_out()
            if runner.finished:
                runner.settle(_CREDITS_S)
        return loop.state.ended_by

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the model that the run has ended with."""
        runner = self._runner
        if runner is None or runner.loop.state.final is None:
            raise MechanismError("the server has no result: its run has not ended")
        return dict(runner.loop.rule.weights(runner.loop.state.final))

    # ------------------------------------------------------------------ while it runs

    @ray.method(concurrency_group="control")
    def progress(self, committed: int) -> ServerNews:
        """Return what is new since the last call; `committed` is the newest whole checkpoint."""
        rows, written = self._news()
        runner = self._runner
        if runner is None:
            return ServerNews(rows=rows, written=written)
        self._metrics.publish(runner, rows)
        runner.committed = committed
        cut = [runner.cut.pop(0) for _ in range(len(runner.cut))]
        return ServerNews(
            samples=runner.loop.state.samples,
            messages=runner.loop.state.messages,
            rows=rows,
            written=written,
            cut=cut,
        )

    @ray.method(concurrency_group="control")
    def meanwhile(self, method: str, *arguments: Any) -> Any:
        """Let the thread that runs call one of the other methods, between two steps."""
        return self._errands.ask(lambda: getattr(self, method)(*arguments))

    def lose(self, worker: int, step: int | None) -> None:
        """A worker is lost; the next begins with its part of checkpoint `step`."""
        self._running().lose(worker, step)

    def take_in(self, worker: int) -> None:
        """Take in another process in the place of a lost worker; its links are open."""
        self._running().join(worker, self._seat(worker))

    def suspend(self) -> None:
        """End soon, with everything kept, for others to go on."""
        self._running().suspend()

    def end(self) -> None:
        """End soon, with a last certificate."""
        self._running().end()

    # ------------------------------------------------------------------ inside

    def _ring(self) -> None:
        self._bell.ring()

    def _running(self) -> ServerRunner:
        if self._runner is None:
            raise MechanismError("the server does not run")
        return self._runner

    def _shards(self, servers: int) -> ShardLinks:
        members = [shard_member(shard) for shard in range(1, servers)]
        boxes = [(self._inboxes["acks", each], self._outboxes["log", each]) for each in members]
        # Rules of one server need not be able to hold a part of w.
        rule: Any = self._rule
        return ShardLinks(rule, boxes, self._bell, self._go_on)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise MechanismError("the server was stopped while a certificate was made")

    def _seat(self, worker: int) -> Seat:
        member = worker + 1
        return Seat(self._inboxes["pushes", member], self._outboxes["answers", member])


ServerActor: Any = ray.remote(concurrency_groups=GROUPS)(ServerMember)  # type: ignore[call-overload]
"""`ServerMember` as a Ray actor: options, then `remote(threads, seed, tags)`."""
