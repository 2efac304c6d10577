"""One run of a parameter server: its numbers from the data, then rounds until an end is reached.

A round has the same workers from its beginning to its end. It ends with the run, or where other
workers are wanted: then everything is kept, and the next round goes on from there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from actors.errors import PlacementError
from actors.server.company import Company, Return, Shard
from actors.server.protocols import Cut, ServerRule
from actors.server.server_actor import ServerNews, ServerProgram
from actors.server.server_group import ServerGroup
from actors.server.server_runner import SUSPENDED
from actors.server.staleness import Bound
from actors.server.worker_actor import WorkerProgram
from raylab.algorithms.server.stragglers import outlived
from raylab.drivers.cluster import patience_s, threads_of
from raylab.drivers.recovery import Losses
from raylab.drivers.run_view import RunView
from raylab.drivers.server.asked import Asked, Means
from raylab.drivers.server.checkpoints import ServerCheckpoints
from raylab.drivers.server.numbers import Limits, ends
from raylab.drivers.termination import TERMINATION
from raylab.records import CheckpointStore, RunFolder

__all__ = ["Rules", "ServerRun"]


class Rules(Protocol):
    """What a server and its workers compute; whole once `settle` has been called."""

    @property
    def title(self) -> str:
        """The method and the problem."""
        ...

    @property
    def epoch_samples(self) -> int:
        """Samples that count as an epoch."""
        ...

    @property
    def figure(self) -> str:
        """Which figure of a certificate the tolerance is of."""
        ...

    @property
    def broadcast(self) -> int:
        """Updates between two broadcasts of w; 0: none."""
        ...

    @property
    def bound(self) -> Bound:
        """How stale a message may be."""
        ...

    @property
    def divided(self) -> bool:
        """Whether what workers keep is of rows, and follows them to other workers."""
        ...

    @property
    def synchronous(self) -> bool:
        """Whether a lost worker takes the whole run back to its last checkpoint."""
        ...

    @property
    def question(self) -> Callable[[Any], Any]:
        """What is asked of each worker's supply, for `settle`."""
        ...

    @property
    def sums(self) -> Callable[[Any], Any] | None:
        """What the server must know of every worker's rule, where the workers are others; None:
        nothing.
        """
        ...

    def supplies(self, workers: int) -> Mapping[int, Callable[[], Any]]:
        """Return what makes each worker's supply."""
        ...

    def settle(self, facts: Mapping[int, Any], workers: int) -> None:
        """Take note of what the supplies say."""
        ...

    def cut(self, servers: int) -> Slicing | None:
        """Return how w is cut among servers; None: it cannot be."""
        ...

    def server(self, servers: int = 1, shard: int = 0) -> Callable[[], ServerRule]:
        """Return what makes the rule of a server, of its range of w if they are several."""
        ...

    def worker(self, worker: int) -> Callable[[Any], Any]:
        """Return what makes a worker's rule of its supply."""
        ...

    def about(self) -> dict[str, Any]:
        """Return what makes a run this one and no other; JSON."""
        ...

    def since(self, about: Mapping[str, Any] | None) -> dict[str, Any]:
        """Take over from what a checkpoint says of its run, if there is one, how it was begun;
        return what its next checkpoints say of that.
        """
        ...

    def described(self) -> dict[str, Any]:
        """Return the problem, its options and its data, as config.yaml has them."""
        ...

    def resolved(self) -> dict[str, Any]:
        """Return what was decided."""
        ...

    def notes(self) -> list[str]:
        """Return what the theorems do not cover."""
        ...


class Slicing(Cut, Protocol):
    """How w is cut among servers."""

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """The first coordinate of each server's, and the one behind its last."""
        ...


class ServerRun:
    """One run, see `raylab.drivers.server.kinds.Run`.

    Args:
        rules: what is computed.
        asked: by the user.
        limits: of the run.
        means: it is computed with.
    """

    noun = "worker"

    def __init__(self, rules: Rules, asked: Asked, limits: Limits, means: Means) -> None:
        self.rules = rules
        self.rows: list[dict[str, Any]] = []
        self.ended_by = ""
        self._asked = asked
        self._limits = limits
        self._means = means
        self._elastic = means.elastic
        self._straggler = means.straggler
        self._checkpoints: ServerCheckpoints | None = None

    @property
    def title(self) -> str:
        """What runs, in a line."""
        servers = f" S={self._asked.servers}" if self._asked.servers > 1 else ""
        return f"{self.rules.title} K={self._elastic.wanted}{servers}"

    @property
    def figure(self) -> str:
        """Which figure of a certificate the tolerance is of."""
        return self.rules.figure

    @property
    def shares(self) -> int:
        """Into how many parts a machine of its own is divided."""
        return max(2, self._elastic.wanted + self._asked.servers)

    def described(self) -> dict[str, Any]:
        """Return the problem, its options and its data, as config.yaml has them."""
        return self.rules.described()

    def resolved(self) -> dict[str, Any]:
        """Return what was decided."""
        return self.rules.resolved()

    def notes(self) -> list[str]:
        """Return what the theorems do not cover, and what gains nothing."""
        found = self.rules.notes()
        servers = self._asked.servers
        if servers > 1 and self._elastic.most == 1:
            found.append(
                f"servers={servers} serve one worker, whose messages come one after the other: one "
                "server is as fast unless w does not fit its memory"
            )
        return found

    def keep_in(self, store: CheckpointStore, folder: RunFolder) -> ServerCheckpoints:
        """Keep checkpoints there, and return them."""
        about = self._asked.numbers("method", "seed", "eta") | self.rules.about()
        samples = self.rules.epoch_samples if self.rules.divided else None
        self._checkpoints = ServerCheckpoints(store, folder, about, samples)
        return self._checkpoints

    def open(self, needs: Mapping[str, float]) -> ServerGroup:
        """Return the server and its workers, to be entered.

        Args:
            needs: of each worker, by Ray's names; a server takes as much CPU.
        """
        return ServerGroup(
            self._elastic.first(),
            servers=self._asked.servers,
            fewest=self._elastic.fewest,
            server={"CPU": needs["CPU"]},
            worker=needs,
            threads=threads_of(needs),
            seed=self._asked.seed,
            wait_s=patience_s(self._means.wait_s),
            wire=self._asked.wire,
            tags={"method": self._asked.method, "run": self._means.name},
        )

    def carry_out(self, group: ServerGroup, losses: Losses, view: RunView) -> Mapping[str, Tensor]:
        """Run from the newest checkpoint to the end, with whichever workers are wanted meanwhile.

        Args:
            group: with the first workers.
            losses: borne so far.
            view: of the user.

        Returns:
            The weights by name.
        """
        while True:
            self.ended_by = self._round(group, len(group.workers), losses, view)
            if self.ended_by != SUSPENDED:
                return group.weights()
            TERMINATION.check()
            self._resize(group, view.say)

    # ----------------------------------------------------------------- inside

    def _resize(self, group: ServerGroup, say: Callable[[str], None]) -> None:
        before, wanted = len(group.workers), self._elastic.wanted
        try:
            group.resize(wanted, self._elastic.wait_s)
        except PlacementError as error:
            self._elastic.stay(len(group.workers))
            say(f"going on with {len(group.workers)} workers: {error}")
        else:
            say(f"going on with {wanted} workers in place of {before}")

    def _round(self, group: ServerGroup, workers: int, losses: Losses, view: RunView) -> str:
        checkpoints, rules = self._checkpoints, self.rules
        if checkpoints is None:
            raise RuntimeError("keep_in comes first")
        servers = self._asked.servers
        saved, recut, server_keepings, keepings = checkpoints.begin(workers, servers, rules.since)
        self.rows = [row for row in self.rows if saved is not None and row["step"] < saved.step]
        before = len(self.rows)
        supplies = rules.supplies(workers)
        rules.settle(group.supply(supplies, rules.question), workers)
        view.ready()
        cut = rules.cut(servers) if servers > 1 else None
        company = Company(
            server=rules.server(servers),
            supplies=supplies,
            workers={k: rules.worker(k) for k in range(workers)},
            program=self._program(workers),
            paces=WorkerProgram(
                straggler=self._straggler,
                sample_s=self._asked.sample_s,
                servers=servers,
                cut=cut,
            ),
            keeping=server_keepings[0],
            keepings=dict(enumerate(keepings)),
            shards=tuple(
                Shard(rule=rules.server(servers, shard), keeping=server_keepings[shard])
                for shard in range(1, servers)
            ),
        )
        group.load(company)
        if saved is not None and recut and rules.sums is not None:
            company = _adopting(company, group.examine(rules.sums), saved.step, cut)

        def watch(news: ServerNews) -> int:
            self.rows.extend(news.rows)
            checkpoints.took(news.written, self.rows)
            view.show(news.samples / rules.epoch_samples, news.rows)
            return checkpoints.committed

        def lost(worker: int, error: Exception) -> Return:
            if rules.synchronous:
                self._straggler = outlived(self._straggler, worker)
                raise error
            back = checkpoints.back(worker)
            how = "nothing" if back.step is None else f"what it kept at step {back.step}"
            losses.bear(error, f"worker {worker} begins again with {how}", checkpoints.whence())
            return back

        def ends() -> bool:
            # A round begins with a row: from then on the server can be told.
            return len(self.rows) > before and view.asked()

        def suspend() -> bool:
            # All is kept then, whoever goes on from there: other workers, or another process.
            return TERMINATION.requested or self._elastic.differs(workers)

        with TERMINATION.watched():
            return group.run(company, watch, lost, suspend, ends)

    def _program(self, workers: int) -> ServerProgram:
        rules = self.rules
        late = {k: self._means.straggler.late_s(k) for k in range(workers)}
        return ServerProgram(
            workers=tuple(range(workers)),
            bound=rules.bound,
            ends=ends(self._limits, rules.epoch_samples, rules.figure),
            broadcast_every=rules.broadcast,
            epoch_samples=rules.epoch_samples,
            checkpoints=self._means.plan,
            servers=self._asked.servers,
            late={} if self.rows else {k: late_s for k, late_s in late.items() if late_s > 0},
        )


def _adopting(company: Company, sums: Mapping[int, Any], step: int, cut: Slicing | None) -> Company:
    """Return a company each of whose servers adopts its range of the workers' sums."""
    ranges = [(None, None)] if cut is None else cut.ranges
    first, *others = (
        functools.partial(_adopt, {k: each[lo:hi] for k, each in sums.items()}, step)
        for lo, hi in ranges
    )
    shards = zip(company.shards, others, strict=True)
    return replace(
        company,
        program=replace(company.program, adopt=first),
        shards=tuple(replace(shard, adopt=adopt) for shard, adopt in shards),
    )


def _adopt(sums: Mapping[int, Any], step: int, rule: Any) -> None:
    rule.adopt(sums, step)
