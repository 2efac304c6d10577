"""One run of a parameter server: its numbers from the data, then rounds until an end is reached.

A round has the same workers from its beginning to its end. It ends with the run, or where other
workers are wanted: then everything is kept, and the next round goes on from there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from actors.company import Company, Return
from actors.errors import PlacementError
from actors.server import Bound
from actors.server_actor import ServerNews, ServerProgram
from actors.server_group import ServerGroup
from actors.server_runner import SUSPENDED
from actors.source import CheckpointPlan
from actors.worker_actor import WorkerProgram
from raylab.algorithms.parameter_server import (
    ServerSettings,
    bound,
    notes,
    server_rule,
    worker_rule,
)
from raylab.algorithms.stragglers import Straggler
from raylab.drivers.elastic import Elastic
from raylab.drivers.recovery import Losses
from raylab.drivers.server_checkpoints import ServerCheckpoints
from raylab.drivers.server_numbers import Limits, ends, first_w, with_facts
from raylab.drivers.server_workload import Facts, Workload, facts_of
from raylab.problems.objective import Objective, Vector

__all__ = ["ServerRun"]


class ServerRun:
    """One run: from checked settings to rows and weights.

    Args:
        settings: with constants that only the data can tell still to be found.
        workload: what is trained.
        limits: of the run.
        straggler: what is wrong with the workers.
        sample_s: modelled time of a sample's computation; None: what it takes.
        plan: when to save, counted in updates.
        elastic: how many workers are wanted.
        rows: of the run so far, where it goes on.
    """

    def __init__(
        self,
        settings: ServerSettings,
        workload: Workload,
        limits: Limits,
        straggler: Straggler,
        sample_s: float | None,
        plan: CheckpointPlan,
        elastic: Elastic,
        rows: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.settings = settings
        self.rows = list(rows)
        self.ended_by = ""
        self._workload = workload
        self._limits = limits
        self._straggler = straggler
        self._sample_s = sample_s
        self._plan = plan
        self._elastic = elastic
        self._known = False

    def carry_out(
        self,
        group: ServerGroup,
        checkpoints: ServerCheckpoints,
        losses: Losses,
        ready: Callable[[], None],
        show: Callable[[float, Sequence[Mapping[str, Any]]], None],
        say: Callable[[str], None],
    ) -> Mapping[str, Tensor]:
        """Run from the newest checkpoint to the end, with whichever workers are wanted meanwhile.

        Args:
            group: with the first workers.
            checkpoints: of the run.
            losses: borne so far.
            ready: called when the numbers of the run are known.
            show: takes the epochs done and the new rows.
            say: takes a line for the user.

        Returns:
            The weights by name.
        """
        while True:
            workers = len(group.workers)
            self.ended_by = self._round(group, workers, checkpoints, losses, ready, show)
            if self.ended_by != SUSPENDED:
                return group.weights()
            self._resize(group, say)

    def notes(self) -> list[str]:
        """Return what the theorems do not cover."""
        return notes(self.settings)

    # ----------------------------------------------------------------- inside

    def _resize(self, group: ServerGroup, say: Callable[[str], None]) -> None:
        before, wanted = len(group.workers), self._elastic.wanted
        try:
            group.resize(wanted, self._elastic.wait_s)
        except PlacementError as error:
            self._elastic.stay(before)
            say(f"going on with {before} workers: {error}")
        else:
            say(f"going on with {wanted} workers in place of {before}")

    def _round(
        self,
        group: ServerGroup,
        workers: int,
        checkpoints: ServerCheckpoints,
        losses: Losses,
        ready: Callable[[], None],
        show: Callable[[float, Sequence[Mapping[str, Any]]], None],
    ) -> str:
        saved, recut, server_keeping, keepings = checkpoints.begin(workers)
        self.rows = [row for row in self.rows if saved is not None and row["step"] < saved.step]
        supplies = self._workload.supplies(workers)
        facts = group.supply(supplies, facts_of)
        w0 = self._settle(facts, workers)
        ready()
        settings = self.settings
        company = Company(
            server=functools.partial(server_rule, settings, w0),
            supplies=supplies,
            workers={k: functools.partial(_worker_rule, settings, k) for k in range(workers)},
            program=self._program(workers),
            paces=WorkerProgram(straggler=self._straggler, sample_s=self._sample_s),
            keeping=server_keeping,
            keepings=dict(enumerate(keepings)),
        )
        group.load(company)
        if recut and settings.traits.duals:
            sums = group.examine(_dual_sum)
            program = replace(company.program, adopt=functools.partial(_adopt, sums))
            company = replace(company, program=program)

        def watch(news: ServerNews) -> int:
            self.rows.extend(news.rows)
            checkpoints.took(news.written, self.rows)
            show(news.samples / settings.n, news.rows)
            return checkpoints.committed

        def lost(worker: int, error: Exception) -> Return:
            back = checkpoints.back(worker)
            how = "nothing" if back.step is None else f"what it kept at step {back.step}"
            losses.bear(error, f"worker {worker} begins again with {how}", checkpoints.whence())
            return back

        return group.run(company, watch, lost, lambda: self._elastic.differs(workers))

    def _settle(self, facts: Mapping[int, Facts], workers: int) -> Vector:
        """Let the settings have what the data says; return the w to begin with."""
        if not self._known:
            self._known = True
            self.settings = with_facts(self.settings, facts)
        self.settings = replace(self.settings, workers=workers)
        return first_w(self.settings, facts[0])

    def _program(self, workers: int) -> ServerProgram:
        settings = self.settings
        most = bound(settings)
        late = {k: self._straggler.late_s(k) for k in range(workers)}
        return ServerProgram(
            workers=tuple(range(workers)),
            bound=Bound(updates=most.updates, late=most.late),
            ends=ends(settings, self._limits),
            broadcast_every=settings.broadcast,
            epoch_samples=settings.n,
            checkpoints=self._plan,
            late={} if self.rows else {k: late_s for k, late_s in late.items() if late_s > 0},
        )


def _worker_rule(settings: ServerSettings, worker: int, objective: Objective) -> Any:
    return worker_rule(settings, objective, worker)


def _dual_sum(rule: Any) -> Vector:
    found: Vector = rule.objective.dual_sum(rule.duals)
    return found


def _adopt(sums: Mapping[int, Vector], rule: Any) -> None:
    rule.adopt(sums)
