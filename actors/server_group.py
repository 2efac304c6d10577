"""A parameter server and its workers: placed, wired, watched; a worker that is lost is replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import ray

from actors.errors import ActorLostError, LinkError, MechanismError
from actors.group import Group
from actors.link import WireKind
from actors.part_writer import Keeping
from actors.placement import Post
from actors.server_actor import ServerActor, ServerNews, ServerProgram, ServerRuleFactory
from actors.server_wire import SERVER, server_links
from actors.worker_actor import Supply, WorkerActor, WorkerProgram, WorkerRuleFactory

__all__ = ["Company", "Return", "ServerGroup"]

_PERIOD_S = 0.25
_LEAVE_S = 30.0
_NOTICE_S = 5.0


class Return(NamedTuple):
    """How the process in the place of a lost worker begins.

    Args:
        step: of the checkpoint that holds what it begins with; None: with nothing.
        keeping: of the worker.
    """

    step: int | None
    keeping: Keeping | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """What a server and its workers compute.

    Args:
        server: makes the server's rule.
        supplies: make what the workers' rules are made from, by worker.
        workers: make the workers' rules, by worker.
        program: of the server.
        paces: of the workers: how fast they are.
        keeping: of the server's parts of checkpoints.
        keepings: of the workers'.
    """

    server: ServerRuleFactory
    supplies: Mapping[int, Supply]
    workers: Mapping[int, WorkerRuleFactory]
    program: ServerProgram
    paces: WorkerProgram = field(default_factory=WorkerProgram)
    keeping: Keeping | None = None
    keepings: Mapping[int, Keeping] = field(default_factory=dict)


class ServerGroup(Group):
    """A server actor and K worker actors, as a context: leaving it leaves nothing behind.

    Args:
        workers: K at the beginning.
        server: what the server needs, by Ray's names.
        worker: what each worker needs.
        threads: of torch's operators in each process.
        seed: of the processes' global generators.
        wait_s: how long to wait for the cluster to have the resources.
        wire: that carries messages.

    Raises:
        PlacementError: the resources are not there in time; the message says what is missing.
    """

    def __init__(
        self,
        workers: int,
        *,
        server: Mapping[str, float],
        worker: Mapping[str, float],
        threads: int,
        seed: int,
        wait_s: float,
        wire: WireKind = "zmq",
    ) -> None:
        def post(index: int) -> Post:
            arguments = (index, threads, seed)
            return Post(actor=WorkerActor, arguments=arguments, resources=worker)

        self._post = post
        self._wire = wire
        posts = {SERVER: Post(actor=ServerActor, arguments=(threads, seed), resources=server)}
        posts |= {k + 1: post(k) for k in range(workers)}
        super().__init__(posts, wait_s, noun="actor")

    @property
    def workers(self) -> list[int]:
        """The workers that are there, ascending."""
        return [member - 1 for member in self.members if member != SERVER]

    def resize(self, workers: int, wait_s: float) -> None:
        """Have workers 0 to `workers` - 1, while nothing runs.

        Raises:
            PlacementError: the cluster has no room for more within `wait_s`.
        """
        for worker in self.workers[workers:]:
            self.remove(worker + 1)
        new = range(len(self.workers), workers)
        if new:
            self.add({k + 1: self._post(k) for k in new}, wait_s)

    def supply(
        self, supplies: Mapping[int, Supply], question: Callable[[Any], Any]
    ) -> dict[int, Any]:
        """Let every worker make what its rule will be made from; return what `question`, called
        with it, finds out.
        """
        calls = [self.handle(k + 1).supply.remote(make, question) for k, make in supplies.items()]
        return dict(zip(supplies, self.ask(calls), strict=True))

    def load(self, company: Company) -> None:
        """Build all rules and open all links; `supply` has been called."""
        loads = [self.handle(SERVER).load.remote(company.server)]
        for k, rule in company.workers.items():
            loads.append(self.handle(k + 1).load.remote(rule, company.keepings.get(k)))
        self.ask(loads)
        self.wire([e for k in company.workers for e in server_links(k)], self._wire, "inline")

    def examine(self, question: Callable[[Any], Any]) -> dict[int, Any]:
        """Return what `question` finds out about each worker's rule."""
        calls = [self.handle(k + 1).examine.remote(question) for k in self.workers]
        return dict(zip(self.workers, self.ask(calls), strict=True))

    def run(
        self,
        company: Company,
        watch: Callable[[ServerNews], int],
        lost: Callable[[int, Exception], Return],
        suspend: Callable[[], bool] = lambda: False,
    ) -> str:
        """Run all to the end; the driver only watches.

        Args:
            company: what is computed, by the workers that are there; `load` has been called.
            watch: called a few times a second with what is new; returns the step of the newest
                checkpoint that is whole, -1: none.
            lost: called with a worker that is lost and what it was lost by; says how to go on, or
                raises.
            suspend: asked a few times a second whether to end soon, with everything kept.

        Returns:
            Why the run has ended.

        Raises:
            ActorLostError: the server's process or node died.
            LinkError: a link was cut that belongs to no worker. What a computation raised is
                raised as it is.
        """
        return _Run(self, company, watch, lost, suspend, self._wire).to_the_end()

    def weights(self) -> dict[str, Any]:
        """Return the model that a run has ended with."""
        found: dict[str, Any] = self.ask([self.handle(SERVER).weights.remote()])[0]
        return found


class _Run:
    """One run of a company, from the driver's side."""

    def __init__(
        self,
        group: ServerGroup,
        company: Company,
        watch: Callable[[ServerNews], int],
        lost: Callable[[int, Exception], Return],
        suspend: Callable[[], bool],
        wire: WireKind,
    ) -> None:
        self._group = group
        self._company = company
        self._watch = watch
        self._lost = lost
        self._suspend = suspend
        self._wire = wire
        self._server = group.handle(SERVER)
        self._ending = self._server.run.remote(company.program, company.keeping)
        self._running: dict[Any, int] = {
            group.handle(k + 1).run.remote(company.paces, company.keepings.get(k)): k
            for k in company.workers
        }
        self._coming: dict[Any, tuple[int, Keeping | None]] = {}
        self._committed = -1

    def to_the_end(self) -> str:
        suspended = False
        while not self._is_over(_PERIOD_S):
            for worker, why in self._look().cut:
                self._is_lost(worker, LinkError(why))
            if not suspended and self._suspend():
                suspended = True
                self._tell("suspend")
        (ended_by,) = self._group.ask([self._ending])
        # All that is left to the workers is to hear of it, and to write what they keep.
        ray.wait(list(self._running), num_returns=len(self._running), timeout=_LEAVE_S)
        self._look()
        return str(ended_by)

    def _is_over(self, timeout_s: float) -> bool:
        """Wait for anything to happen, and see to it; tell whether the server has ended."""
        waiting = [self._ending, *self._running, *self._coming]
        done, _ = ray.wait(waiting, timeout=timeout_s)
        for call in done:
            if call in self._running:
                self._has_ended(call)
            elif call in self._coming:
                self._is_back(call)
        return self._ending in done

    def _has_ended(self, call: Any) -> None:
        worker = self._running[call]
        try:
            self._group.ask([call])
            del self._running[call]
        except (ActorLostError, LinkError) as error:
            self._is_lost(worker, error)

    def _is_lost(self, worker: int, error: Exception) -> None:
        calls = [call for call, k in self._running.items() if k == worker]
        if calls and self._server_lives():
            for call in calls:
                del self._running[call]
            self._bring_back(worker, error)

    def _bring_back(self, worker: int, error: Exception) -> None:
        step, keeping = self._lost(worker, error)
        if self._tell("lose", worker, step):
            self._coming[self._group.restart(worker + 1)] = (worker, keeping)

    def _is_back(self, call: Any) -> None:
        worker, keeping = self._coming.pop(call)
        try:
            self._group.settle(worker + 1, call)
            self._group.wire(server_links(worker), self._wire, "inline", busy=[SERVER])
            handle = self._group.handle(worker + 1)
            company = self._company
            begun = handle.start.remote(
                company.supplies[worker], company.workers[worker], company.paces, keeping
            )
            self._running[begun] = worker
            self._tell("take_in", worker)
        except (ActorLostError, MechanismError) as error:
            if self._server_lives():
                self._running = {c: k for c, k in self._running.items() if k != worker}
                self._bring_back(worker, error)

    def _tell(self, method: str, *arguments: Any) -> bool:
        """Let the server do something between two steps; tell whether it still runs."""
        try:
            self._group.ask([self._server.meanwhile.remote(method, *arguments)])
        except MechanismError:
            if not self._has_ended_soon():
                raise
            return False
        return True

    def _server_lives(self) -> bool:
        """Tell whether the server's run goes on.

        Raises:
            ActorLostError: its process is gone: its workers miss the links to it first.
        """
        self._group.ask([self._server.alive.remote()])
        return not self._has_ended_soon(0.0)

    def _has_ended_soon(self, timeout_s: float = _NOTICE_S) -> bool:
        """Tell whether the server's run ends in time; raise what has ended it, if anything has."""
        done, _ = ray.wait([self._ending], timeout=timeout_s)
        self._group.ask(done)
        return bool(done)

    def _look(self) -> ServerNews:
        """Tell whoever watches what is new, and return it."""
        told: list[ServerNews] = self._group.ask([self._server.progress.remote(self._committed)])
        away = {worker for worker, _ in self._coming.values()}
        present = [k for k in self._company.workers if k not in away]
        calls = [self._group.handle(k + 1).progress.remote() for k in present]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=_NOTICE_S)
        written = [part for call in ready for part in self._parts(call)]
        news = replace(told[0], written=[*told[0].written, *written])
        self._committed = self._watch(news)
        return news

    def _parts(self, call: Any) -> list[tuple[int, Any]]:
        try:
            parts: list[list[tuple[int, Any]]] = self._group.ask([call])
        except ActorLostError:
            # It will be missed by what it was to do.
            return []
        return parts[0]
