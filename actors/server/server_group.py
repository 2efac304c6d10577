"""A parameter server and its workers: placed, supplied, wired and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from typing_extensions import Self

from actors.groups.group import Group
from actors.groups.placement import Post
from actors.server.company import Company, Return
from actors.server.exchange import SERVER
from actors.server.server_actor import ServerActor, ServerNews
from actors.server.shard_actor import ShardActor
from actors.server.shard_log import links_of, shard_links, shard_member
from actors.server.watch import ServerWatch
from actors.server.worker_actor import Supply, WorkerActor
from actors.wires.link import WireKind

__all__ = ["ServerGroup"]


class ServerGroup(Group):
    """A server and K worker actors, as a context: leaving it leaves nothing behind.

    A server of several shards has an actor for each, on nodes of their own where there are any.

    Args:
        workers: K at the beginning.
        fewest: workers that are placed with the server; the others, and those that come later,
            have a placement group each, so that the cluster has the place of one that goes. None:
            all of them. With several servers all workers have one each.
        servers: shards of w.
        server: what each of them needs, by Ray's names.
        worker: what each worker needs.
        threads: of torch's operators in each process.
        seed: of the processes' global generators.
        wait_s: how long to wait for the cluster to have the resources.
        wire: that carries messages.
        tags: `method` and `run`, of the metrics.

    Raises:
        PlacementError: the resources are not there in time; the message says what is missing.
    """

    def __init__(
        self,
        workers: int,
        *,
        fewest: int | None = None,
        servers: int = 1,
        server: Mapping[str, float],
        worker: Mapping[str, float],
        threads: int,
        seed: int,
        wait_s: float,
        wire: WireKind = "zmq",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        common = (threads, seed, dict(tags or {}))

        def post(index: int) -> Post:
            arguments = (index, *common)
            return Post(actor=WorkerActor, arguments=arguments, resources=worker)

        self._post = post
        self._wire = wire
        self.servers = servers
        """Shards of w."""
        self._first = workers
        near = workers if fewest is None else min(fewest, workers)
        posts = {SERVER: Post(actor=ServerActor, arguments=common, resources=server)}
        if servers == 1:
            posts |= {k + 1: post(k) for k in range(near)}
        for s in range(1, servers):
            arguments = (s, threads, seed)
            member = shard_member(s)
            posts[member] = Post(actor=ShardActor, arguments=arguments, resources=server)
        strategy = "PACK" if servers == 1 else "SPREAD"
        super().__init__(posts, wait_s, strategy=strategy, noun="actor")

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.resize(self._first)
        except BaseException:
            self.close()
            raise
        return self

    @property
    def workers(self) -> list[int]:
        """The workers that are there, ascending."""
        return [member - 1 for member in self.members if member > SERVER]

    @property
    def shards(self) -> list[int]:
        """The members that are shards of the server, the first one first."""
        return [shard_member(shard) for shard in range(self.servers)]

    def resize(self, workers: int, wait_s: float | None = None) -> None:
        """Have workers 0 to `workers` - 1, while nothing runs.

        Raises:
            PlacementError: the cluster has no room for more within `wait_s`.
        """
        for worker in self.workers[workers:]:
            self.remove(worker + 1)
        new = range(len(self.workers), workers)
        if new:
            self.add({k + 1: self._post(k) for k in new}, wait_s, apart=True)

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
        for s, shard in enumerate(company.shards, 1):
            loads.append(self.handle(shard_member(s)).load.remote(shard.rule))
        for k, rule in company.workers.items():
            loads.append(self.handle(k + 1).load.remote(rule, company.keepings.get(k)))
        self.ask(loads)
        links = [e for k in company.workers for e in links_of(k, self.servers)]
        links += [e for s in range(1, self.servers) for e in shard_links(s)]
        self.wire(links, self._wire, "inline")

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
        ends: Callable[[], bool] = lambda: False,
    ) -> str:
        """Run all to the end; the driver only watches.

        Args:
            company: what is computed, by the workers that are there; `load` has been called.
            watch: called a few times a second with what is new; returns the step of the newest
                checkpoint that is whole, -1: none.
            lost: called with a worker that is lost and what it was lost by; says how to go on, or
                raises.
            suspend: asked a few times a second whether to end soon, with everything kept.
            ends: asked as often whether to end for good, once there has been a row.

        Returns:
            Why the run has ended.

        Raises:
            ActorLostError: the server's process or node died.
            LinkError: a link was cut that belongs to no worker. What a computation raised is
                raised as it is.
        """
        return ServerWatch(self, company, self._wire, watch, lost, suspend, ends).to_the_end()

    def weights(self) -> dict[str, Any]:
        """Return the model that a run has ended with."""
        slices = self.ask(self.handle(each).weights.remote() for each in self.shards)
        if len(slices) == 1:
            return dict(slices[0])
        return {name: torch.cat([each[name] for each in slices]) for name in slices[0]}
