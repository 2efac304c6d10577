"""One run of AsySVRG in shared memory: a single actor, whose threads are the workers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from actors.groups.part_writer import Keeping
from actors.server.solver_actor import SolverNews
from actors.server.solver_group import SolverGroup
from raylab.algorithms.shared_memory.asysvrg import SharedMemorySolver, figure
from raylab.algorithms.shared_memory.settings import SharedSettings
from raylab.algorithms.shared_memory.training import SharedLimits, SharedTraining
from raylab.drivers.cluster import patience_s
from raylab.drivers.commits import Commits
from raylab.drivers.recovery import Losses
from raylab.drivers.run_view import RunView
from raylab.drivers.server.asked import Asked, Means
from raylab.drivers.server.numbers import Limits
from raylab.drivers.server.workload import Workload
from raylab.drivers.termination import LastCheckpoint
from raylab.problems import shards
from raylab.records import CheckpointStore, RunFolder

__all__ = ["SharedRun", "shared_settings"]

_PART = "solver"


def shared_settings(asked: Asked, threads: int) -> SharedSettings:
    """Return what the threads are told.

    Raises:
        ConfigError: a number is out of its range.
    """
    return SharedSettings(
        threads=threads,
        eta=asked.eta,
        inner=asked.inner,
        batch=asked.batch,
        coordinates=asked.coordinates,
        seed=asked.seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the solver has decided."""

    figure: str
    resolved: dict[str, Any]
    notes: list[str]


class SharedRun:
    """One run, see `raylab.drivers.server.kinds.Run`.

    Args:
        settings: of the threads.
        workload: what is trained.
        asked: by the user.
        limits: of the run.
        means: it is computed with.
    """

    noun = "solver"

    def __init__(
        self,
        settings: SharedSettings,
        workload: Workload,
        asked: Asked,
        limits: Limits,
        means: Means,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ended_by = ""
        self._settings = settings
        self._workload = workload
        self._asked = asked
        self._limits = limits
        self._means = means
        self._facts = _Facts(figure="", resolved={}, notes=[])
        self._checkpoints: Commits | None = None

    @property
    def title(self) -> str:
        """What runs, in a line."""
        threads = self._settings.threads
        return f"AsySVRG in shared memory {self._workload.title} K={threads}"

    @property
    def figure(self) -> str:
        """Which figure of a certificate the tolerance is of."""
        return self._facts.figure

    @property
    def shares(self) -> int:
        """Into how many parts a machine of its own is divided."""
        return self._settings.threads

    def described(self) -> dict[str, Any]:
        """Return the problem, its options and its data, as config.yaml has them."""
        return self._workload.described()

    def resolved(self) -> dict[str, Any]:
        """Return what was decided."""
        return self._facts.resolved

    def notes(self) -> list[str]:
        """Return what the theorem does not cover."""
        return [*self._workload.notes(), *self._facts.notes]

    def keep_in(self, store: CheckpointStore, folder: RunFolder) -> Commits:
        """Keep checkpoints there, and return them."""
        about = {
            "kind": "parameter_server",
            **self._asked.numbers("method", "strength", "batch", "seed", "eta"),
            "problem": self._workload.title,
            "data": self._workload.data,
            "n": self._workload.n,
        }
        self._checkpoints = Commits(store, folder, about)
        return self._checkpoints

    def open(self, needs: Mapping[str, float]) -> SolverGroup:
        """Return the solver's actor, to be entered.

        Args:
            needs: of each thread, by Ray's names.
        """
        threads = self._settings.threads
        return SolverGroup(
            {name: amount * threads for name, amount in needs.items()},
            threads=1,
            seed=self._asked.seed,
            wait_s=patience_s(self._means.wait_s),
        )

    def carry_out(self, group: SolverGroup, losses: Losses, view: RunView) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Run from the newest checkpoint to the end.

        Args:
            group: the actor.
            losses: borne so far; one of the solver ends this attempt.
            view: of the user.

        Returns:
            The weights by name.
        """
        checkpoints = self._checkpoints
        if checkpoints is None:
            raise RuntimeError("keep_in comes first")
        n, limits = self._workload.n, self._limits
        saved = checkpoints.newest()
        self._workload = self._workload.since(None if saved is None else saved.about)
        threads = {"workers": self._settings.threads}
        checkpoints.expect([_PART], threads | self._workload.kept())
        self.rows = [row for row in self.rows if saved is not None and row["step"] < saved.step]
        told = SharedLimits(
            samples=limits.epochs * n,
            messages=limits.messages,
            tolerance=limits.tolerance,
            certify_samples=limits.certify_every * n,
        )
        make = functools.partial(_training, self._workload, self._settings, told)
        self._facts = group.load(make, _facts_of)
        view.ready()
        resume = None if saved is None else functools.partial(saved.part, _PART)
        keeping = Keeping(name=_PART, write=checkpoints.store.write_part, resume=resume)

        def watch(news: SolverNews) -> bool:
            self.rows.extend(news.rows)
            checkpoints.took(news.written, self.rows)
            done = self.rows[-1]["samples_seen"] if self.rows else 0
            view.show(done / n, news.rows)
            last.look()
            return view.asked() and bool(self.rows)

        plan = self._means.plan
        last = LastCheckpoint(group.save, lambda: checkpoints.committed, on=plan.on)
        with last:
            self.ended_by = group.run(plan, keeping, watch)
        return group.weights()


def _training(workload: Workload, settings: SharedSettings, limits: SharedLimits) -> SharedTraining:
    (whole,) = shards(workload.n, 1)
    return SharedTraining(SharedMemorySolver(workload.make(whole), settings), limits)


def _facts_of(training: SharedTraining) -> _Facts:
    solver = training.solver
    objective = solver.objective
    n = objective.shard.n
    return _Facts(
        figure=figure(objective),
        resolved={
            "first_eta": solver.eta,
            "inner": solver.inner,
            "coordinates": solver.settings.block(objective.dim),
            "n": n,
            "dim": objective.dim,
            "smoothness": objective.smoothness,
            "curvature": objective.curvature() / n,
        },
        notes=solver.settings.notes(objective),
    )
