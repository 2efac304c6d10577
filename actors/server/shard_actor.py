"""The Ray shell of a shard that is not the first: it opens boxes, runs the runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch

from actors.errors import MechanismError
from actors.groups.errands import Errands
from actors.groups.member import GROUPS, Member
from actors.groups.part_writer import Keeping, resumed
from actors.server.exchange import SERVER
from actors.server.seat import Seat
from actors.server.server_actor import ServerRuleFactory
from actors.server.shard_links import BYTES
from actors.server.shard_log import shard_member
from actors.server.shard_loop import ShardLoop
from actors.server.shard_runner import ShardRunner, part_of
from actors.wires.doorbell import Doorbell

__all__ = ["ShardActor", "ShardMember"]

_PATIENCE_S = 0.2
_CREDITS_S = 10.0


class ShardMember(Member):
    """A shard of a parameter server, in the process of its actor.

    Args:
        shard: its number, from 1.
        threads: of torch's operators in this process.
        seed: of the process's global generators.
    """

    def __init__(self, shard: int, threads: int, seed: int) -> None:
        super().__init__(shard_member(shard), f"server {shard}", threads, seed)
        self._bell: Doorbell[tuple[str, int]] = Doorbell()
        self._errands = Errands(self._bell.ring)
        self._rule: Any = None
        self._runner: ShardRunner | None = None

    def load(self, rule: ServerRuleFactory) -> None:
        """Build the rule of this shard's range."""
        torch.set_num_threads(self._threads)
        self._runner = None
        self._rule = rule()
        # What is asked before the loop runs waits for it.
        self._errands.begin()

    def run(
        self, workers: tuple[int, ...], adopt: Callable[[Any], None] | None, keeping: Keeping | None
    ) -> None:
        """Follow the first server to the end, or until `stop`."""
        try:
            self._run(workers, adopt, keeping)
        finally:
            self._errands.end()

    def _run(
        self, workers: tuple[int, ...], adopt: Callable[[Any], None] | None, keeping: Keeping | None
    ) -> None:
        if self._rule is None:
            raise MechanismError(f"{self._title} has no rule yet: call load first")
        part = resumed(keeping)
        if part is not None:
            self._rule.restore(part["rule"])
        if adopt is not None:
            adopt(self._rule)
        with self._keeping(keeping) as writer:

            def save(step: int, state: Mapping[str, Any]) -> None:
                if writer is not None:
                    writer(step, part_of(step, state, runner.carried_bytes))

            runner = ShardRunner(
                ShardLoop(self._rule, save),
                self._inboxes["log", SERVER],
                self._outboxes["acks", SERVER],
                bell=self._bell,
                who=self._title,
                carried_bytes=0 if part is None else part["figures"][BYTES],
            )
            for worker in workers:
                runner.join(worker, self._seat(worker))
            self._runner = runner
            while not runner.finished and not self._stop.is_set():
                runner.advance(_PATIENCE_S)
                self._errands.carry_out()
            if runner.finished:
                runner.settle(_CREDITS_S)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return this range of the model that the run has ended with."""
        runner = self._runner
        if runner is None or not runner.loop.over:
            raise MechanismError(f"{self._title} has no result: its run has not ended")
        return dict(runner.loop.weights())

    # ------------------------------------------------------------------ while it runs

    @ray.method(concurrency_group="control")
    def progress(self) -> list[tuple[int, Any]]:
        """Return the parts of checkpoints that were written since the last call."""
        return self._news()[1]

    @ray.method(concurrency_group="control")
    def meanwhile(self, method: str, *arguments: Any) -> Any:
        """Let the thread that runs call one of the other methods, between two steps."""
        return self._errands.ask(lambda: getattr(self, method)(*arguments))

    def lose(self, worker: int, step: int | None) -> None:  # noqa: ARG002
        """A worker is lost; what it has done is taken back when the first server says so."""
        self._running().lose(worker)

    def take_in(self, worker: int) -> None:
        """Take in another process in the place of a lost worker; its links are open."""
        self._running().join(worker, self._seat(worker))

    # ------------------------------------------------------------------ inside

    def _ring(self) -> None:
        self._bell.ring()

    def _running(self) -> ShardRunner:
        if self._runner is None:
            raise MechanismError(f"{self._title} does not run")
        return self._runner

    def _seat(self, worker: int) -> Seat:
        member = worker + 1
        return Seat(self._inboxes["pushes", member], self._outboxes["answers", member])


ShardActor: Any = ray.remote(concurrency_groups=GROUPS)(ShardMember)  # type: ignore[call-overload]
"""`ShardMember` as a Ray actor: options, then `remote(shard, threads, seed)`."""
