"""Who watches a server and its workers while they run: one that is lost is replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.errors import ActorLostError, LinkError, MechanismError
from actors.groups.group import Group
from actors.groups.part_writer import Keeping
from actors.server.company import Company, Return
from actors.server.exchange import SERVER
from actors.server.server_actor import ServerNews
from actors.server.shard_log import links_of, shard_member
from actors.wires.link import WireKind

__all__ = ["ServerWatch"]

_PERIOD_S = 0.25
_LEAVE_S = 30.0
_NOTICE_S = 5.0
_PLACINGS = 3
"""How often a process is started in the place of a lost one. Its node may be gone, too, and Ray
learns that no sooner than by starting there: such a process has not lived, and is no other loss."""


@dataclass(frozen=True, slots=True)
class _Coming:
    """A worker that a new process is started for."""

    worker: int
    keeping: Keeping | None
    placings: int = 1


class ServerWatch:
    """One run of a company, from the driver's side, see `ServerGroup.run`.

    Args:
        group: where the server and the workers live.
        company: what they compute.
        wire: that carries their messages.
        watch: called with what is new.
        lost: called with a worker that is lost; says how to go on, or raises.
        suspend: asked whether to end soon, for others to go on.
        ends: asked whether to end for good.
    """

    def __init__(
        self,
        group: Group,
        company: Company,
        wire: WireKind,
        watch: Callable[[ServerNews], int],
        lost: Callable[[int, Exception], Return],
        suspend: Callable[[], bool],
        ends: Callable[[], bool],
    ) -> None:
        self._group = group
        self._company = company
        self._watch = watch
        self._lost = lost
        self._suspend = suspend
        self._ends = ends
        self._wire = wire
        self._server = group.handle(SERVER)
        members = [shard_member(s) for s in range(1, len(company.shards) + 1)]
        self._shards = [group.handle(member) for member in members]
        self._servers = [*members, SERVER]
        """Those that are told of a worker in this order: the first server last."""
        self._following = [
            handle.run.remote(tuple(company.workers), shard.adopt, shard.keeping)
            for handle, shard in zip(self._shards, company.shards, strict=True)
        ]
        self._ending = self._server.run.remote(company.program, company.keeping)
        self._running: dict[Any, int] = {
            group.handle(k + 1).run.remote(company.paces, company.keepings.get(k)): k
            for k in company.workers
        }
        # Workers that come in the place of others, until they are placed, and until they can work.
        self._placing: dict[Any, _Coming] = {}
        self._loading: dict[Any, tuple[int, Keeping | None]] = {}
        self._committed = -1

    def to_the_end(self) -> str:
        """Watch until the server has ended; return why it has."""
        suspended = ended = False
        while not self._is_over(_PERIOD_S):
            for worker, why in self._look().cut:
                self._is_lost(worker, LinkError(why))
            if not ended and self._ends():
                ended = True
                self._tell("end")
            elif not (ended or suspended) and self._suspend():
                suspended = True
                self._tell("suspend")
        (ended_by,) = self._group.ask([self._ending])
        # All that is left to the workers is to hear of it, and to write what they keep.
        left = [*self._running, *self._following]
        ray.wait(left, num_returns=len(left), timeout=_LEAVE_S)
        self._look()
        return str(ended_by)

    def _is_over(self, timeout_s: float) -> bool:
        """Wait for anything to happen, and see to it; tell whether the server has ended."""
        waiting = [self._ending, *self._following, *self._running, *self._placing, *self._loading]
        done, _ = ray.wait(waiting, timeout=timeout_s)
        for call in done:
            if call in self._following:
                self._following.remove(call)
                self._group.ask([call])
            elif call in self._running:
                self._has_ended(call)
            elif call in self._placing:
                self._is_placed(call)
            elif call in self._loading:
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
            self._place(_Coming(worker, keeping))

    def _place(self, coming: _Coming) -> None:
        self._placing[self._group.restart(coming.worker + 1)] = coming

    def _is_placed(self, call: Any) -> None:
        """A new process is there: let it load, which takes its time, before it takes part."""
        coming = self._placing.pop(call)
        worker, keeping = coming.worker, coming.keeping
        try:
            self._group.settle(worker + 1, call)
        except ActorLostError as error:
            if coming.placings < _PLACINGS:
                self._place(replace(coming, placings=coming.placings + 1))
            else:
                self._is_lost_again(worker, error)
            return
        company = self._company
        loading = self._group.handle(worker + 1).prepare.remote(
            company.supplies[worker], company.workers[worker], keeping
        )
        self._loading[loading] = (worker, keeping)

    def _is_back(self, call: Any) -> None:
        worker, keeping = self._loading.pop(call)
        try:
            self._group.ask([call])
            links = links_of(worker, len(self._servers))
            self._group.wire(links, self._wire, "inline", busy=self._servers)
        except MechanismError as error:
            # It, or the server's loop, which has ended meanwhile.
            self._is_lost_again(worker, error)
            return
        running = self._group.handle(worker + 1).run.remote(self._company.paces, keeping)
        self._running[running] = worker
        self._tell("take_in", worker)

    def _is_lost_again(self, worker: int, error: Exception) -> None:
        if self._server_lives():
            self._bring_back(worker, error)

    def _tell(self, method: str, *arguments: Any) -> bool:
        """Let the server do something between two steps; tell whether it still runs.

        Of a worker all shards are told. The first server is told last: what it does then can be
        done by all of them.
        """
        handles = [self._server] if method in ("suspend", "end") else [*self._shards, self._server]
        try:
            for handle in handles:
                self._group.ask([handle.meanwhile.remote(method, *arguments)])
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
        self._group.ask(each.alive.remote() for each in (*self._shards, self._server))
        return not self._has_ended_soon(0.0)

    def _has_ended_soon(self, timeout_s: float = _NOTICE_S) -> bool:
        """Tell whether the server's run ends in time; raise what has ended it, if anything has."""
        done, _ = ray.wait([self._ending], timeout=timeout_s)
        self._group.ask(done)
        return bool(done)

    def _look(self) -> ServerNews:
        """Tell whoever watches what is new, and return it."""
        told: list[ServerNews] = self._group.ask([self._server.progress.remote(self._committed)])
        following = [each.progress.remote() for each in self._shards]
        away = {each.worker for each in self._placing.values()}
        away |= {worker for worker, _ in self._loading.values()}
        present = [k for k in self._company.workers if k not in away]
        calls = [self._group.handle(k + 1).progress.remote() for k in present]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=_NOTICE_S)
        written = [part for call in (*ready, *following) for part in self._parts(call)]
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
