"""The worker of methods with duals: its α waits for the server's word, see `dual_server`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from raylab.algorithms.server.parts import (
    AskedPhase,
    Part,
    Task,
    Tensors,
    as_tensor,
    as_vector,
    losses_part,
)
from raylab.algorithms.server.row_snapshot import RowSnapshot, SpilledRows
from raylab.algorithms.server.sampling import Passes
from raylab.algorithms.server.settings import ServerSettings
from raylab.problems.objective import DualObjective, Rows, Vector

__all__ = ["DualWorker"]

_LARGE_BYTES = 1 << 26
"""Of the duals of a shard, from which on nothing makes a second copy of them in memory."""


class DualWorker:
    """A worker with duals.

    Args:
        settings: of the run.
        objective: of its samples.
        worker: its number, which its draws are keyed by.
    """

    def __init__(self, settings: ServerSettings, objective: DualObjective, worker: int) -> None:
        self.settings = settings
        self.objective = objective
        self.worker = worker
        self.duals: Vector = objective.zero_duals()
        rows, count = objective.shard.rows, settings.message_samples
        self._passes = Passes(settings.seed, worker, rows, count)
        self._begun: Vector | SpilledRows | None = None
        self._snapshot: weakref.ref[RowSnapshot] | None = None
        self._marks: dict[int, Vector] = {}
        self._change: tuple[Rows, Vector] | None = None
        self._message: Tensors = ()
        self._samples = 0

    @property
    def pending(self) -> tuple[Rows, Vector] | None:
        """Rows, and the change of their duals that waits for the server's word."""
        return self._change

    def _ordered_rows(self, number: int) -> Rows:
        """Return the rows of H sequential steps."""
        return self._passes.take(number)

    def begin(self, phase: AskedPhase, opening: Tensors) -> None:  # noqa: ARG002
        """A phase begins; what was not committed is dropped."""
        self._change = None

    def work(self, task: Task, answer: Tensors, piece: int) -> None:
        """Compute a piece of the message."""
        raise NotImplementedError

    def message(self) -> Tensors:
        """Return the message; the duals wait for `commit`."""
        return self._message

    def samples(self) -> int:
        """Return the samples that it is made of so far."""
        return self._samples

    def commit(self) -> None:
        """Move the duals: the server has moved w."""
        if self._change is not None:
            rows, change = self._change
            self._changing(rows)
            with np.errstate(over="ignore", invalid="ignore"):
                self.duals[rows] += change
        self._change = None

    def discard(self) -> None:
        """Leave the duals as they are: the server has not moved w."""
        self._change = None

    def certify(self, answer: Tensors) -> Part:
        """Return losses and gradient at the server's w, conjugates and sum of the duals."""
        part = losses_part(self.objective, as_vector(answer[0]))
        values, tensors = dict(part.values), dict(part.tensors)
        with np.errstate(over="ignore", invalid="ignore"):
            tensors["dual_sum"] = as_tensor(self.objective.dual_sum(self.duals))
            # The gap holds for any duals; those of a long step may have no conjugate.
            feasible = self.objective.feasible(self.duals)
            conjugates = self.objective.conjugates(feasible)
            if conjugates is not None:
                values["conjugates"] = conjugates
                if feasible is not self.duals:
                    tensors["feasible_sum"] = as_tensor(self.objective.dual_sum(feasible))
            return Part(values=values, tensors=tensors)

    def mark(self, number: int, good: int | None) -> None:
        """Remember the duals of now."""
        if not self.settings.keeps_marks:
            return
        self._marks[number] = self.duals.copy()
        self._marks = {n: marked for n, marked in self._marks.items() if n in (number, good)}

    def rewind(self, number: int | None) -> None:
        """Go back to the duals of a certificate, or to those that the process began with."""
        self._change = None
        marked = None if number is None else self._marks.get(number)
        # An array of its own: the one of now may be on its way into a checkpoint.
        if marked is not None:
            self.duals = marked.copy()
        elif isinstance(self._begun, SpilledRows):
            self.duals = self._begun.read()
        else:
            self.duals = self.objective.zero_duals() if self._begun is None else self._begun.copy()
        self._snapshot = None

    def save(self) -> dict[str, Any]:
        """Return the duals; large ones as a snapshot of rows, of which only those are copied that
        change before they are written.
        """
        if self.duals.nbytes < _LARGE_BYTES:
            return {"duals": as_tensor(self.duals.copy())}
        snapshot = RowSnapshot(self.duals)
        self._snapshot = weakref.ref(snapshot)
        return {"duals": snapshot}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned; of large duals the tensor is the worker's from now on."""
        kept = saved["duals"]
        duals = kept.array() if isinstance(kept, RowSnapshot) else as_vector(kept)
        small = duals.nbytes < _LARGE_BYTES
        self.duals = duals.copy() if small else duals
        self._begun = None
        if self.settings.halves:
            self._begun = self.duals.copy() if small else SpilledRows(duals)
        self._marks = {}
        self._change = None
        self._snapshot = None

    def _changing(self, rows: Rows) -> None:
        """Say that the duals of rows are about to be written to."""
        snapshot = None if self._snapshot is None else self._snapshot()
        if snapshot is not None:
            snapshot.preserve(rows)
