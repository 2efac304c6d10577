"""The loop of a run over its local replicas: one of them under Ray Train, all in a simulation.

    epoch ── round ── every replica begins step k · every replica ends it ── a checkpoint, if due
          ── row: figures of all workers · test with the mean of all replicas

All that replicas do together goes through their seats, in the same order everywhere, so that the
same loop runs for W processes and for W replicas of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from raylab.algorithms.averaging.collective import Collective, gathered, summed
from raylab.algorithms.averaging.flat import FlatTensors, averaged_buffers, trainable
from raylab.algorithms.averaging.worker import AveragingWorker
from raylab.algorithms.stage.module_copy import (
    copied_module,
    extra_states,
    load_extra_states,
)
from raylab.drivers.averaging.course import Course, Row
from raylab.drivers.averaging.evaluation import Evaluation
from raylab.drivers.averaging.rows import merged_row
from raylab.drivers.averaging.shards import Shards

__all__ = ["AveragingLoop", "Keeper"]

_VOTE_STEPS = 16
"""Local steps between two looks at the first worker's clock, and at what it is asked, which decide
for all; after a row there is one, too.
"""
_LEAVES_S = 1.0
"""Between two questions of the first worker whether to save and go."""


class Keeper(Protocol):
    """Where checkpoints go."""

    def keep(self, step: int, parts: Sequence[Mapping[str, Any]]) -> None:
        """Keep the parts of the local replicas."""
        ...


class AveragingLoop:
    """One run, from where it stands to its end.

    Args:
        course: what is to be done.
        workers: the local replicas.
        seats: of the local replicas, for all but the averages of the method.
        clock: seconds.
        on_rows: takes new rows; called where the first worker is.
        keeper: takes checkpoints; None: there are none.
        asked: tells the first worker whether the run is to end.
        leaves: tells the first worker whether the run is to save and go, for another process to go
            on; it is called once a second at most.
        about: what else a checkpoint is to say of the run; the same wherever it goes on.
        timed: gives a row other times.
    """

    def __init__(
        self,
        course: Course,
        workers: Sequence[AveragingWorker],
        seats: Sequence[Collective],
        *,
        clock: Callable[[], float] = time.perf_counter,
        on_rows: Callable[[Sequence[Row]], None] | None = None,
        keeper: Keeper | None = None,
        asked: Callable[[], bool] = lambda: False,
        leaves: Callable[[], bool] = lambda: False,
        about: Mapping[str, Any] | None = None,
        timed: Callable[[Row], Row] = lambda row: row,
    ) -> None:
        self.rows: list[Row] = []
        self.stopped = False
        """Whether the run has ended because it was asked to."""
        self.left = False
        """Whether it has saved and gone in the middle."""
        self.size = seats[0].size
        """W."""
        self.model = copied_module(workers[0].model)
        """Gets the mean of all replicas."""
        self._course = course
        self._workers = workers
        self._seats = seats
        self._ranks = [worker.settings.worker for worker in workers]
        self._clock = clock
        self._on_rows = on_rows
        self._keeper = keeper
        self._asked = asked
        self._leaves = leaves
        self._leaves_asked_s = -_LEAVES_S
        self.about = dict(about or {})
        self._timed = timed
        self._shards = Shards(course.batches, course.settings.seed, own=course.reads_own)
        self._test = Shards(
            () if course.test is None else course.test,
            course.settings.seed,
            own=course.reads_own_test,
        )
        self._evaluation = Evaluation(self.model, course.loss_fn, workers[0].settings)
        self._epoch = 0
        self._taken = 0
        self._averages = 0
        self._trained_s = 0.0
        self._before_s = 0.0
        self._began = clock()
        self._saved_step = 0
        self._saved_s = self._began
        self._voted_step = 0

    @property
    def step(self) -> int:
        """Local steps done."""
        return self._workers[0].step

    def run(self) -> None:
        """Train to the end, or until all know that it is asked for; the mean of all replicas is in
        `model` then.

        Raises:
            RaylabError: the run failed.
        """
        if self._epoch >= self._course.epochs:
            self._take_mean()
        for epoch in range(self._epoch, self._course.epochs):
            self._epoch = epoch
            rounds = self._shards.rounds(epoch, self._taken, self.size, self._ranks)
            since = self._clock()
            for batches in rounds:
                self._round(batches)
                self._taken += self.size
                self._trained_s += self._clock() - since
                every = self._course.report_every
                if every and self.step % every == 0:
                    self._add(None, tested=False)
                self._look_up()
                if self.stopped:
                    self._take_mean()
                if self.stopped or self.left:
                    return
                since = self._clock()
            last = epoch + 1 == self._course.epochs
            if last:
                for worker in self._workers:
                    worker.drop()
            due = last or (epoch + 1) % self._course.evaluate_every == 0
            self._add(epoch + 1, tested=due and self._course.test is not None)
            self._epoch, self._taken = epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """Return where the loop stands, beside what the replicas hold."""
        return {
            "epoch": self._epoch,
            "taken": self._taken,
            "workers": self.size,
            "averages": self._averages,
            "trained_s": self._trained_s,
            "time_s": self._time_s(),
            "rows": self.rows,
            "about": self.about,
            "batches": self._shards.state(),
            "test": self._test.state_now(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` has returned; the replicas are restored already."""
        self._epoch, self._taken = state["epoch"], state["taken"]
        self._averages = state["averages"]
        self._trained_s = state["trained_s"]
        self._before_s = state["time_s"]
        self.rows = [dict(row) for row in state["rows"]]
        # What the last version wrote has no states of the batches' own.
        self._shards.restore(state.get("batches", {}))
        self._test.restore(state.get("test", {}))
        self._saved_step = self._voted_step = self.step

    def _round(self, batches: Sequence[tuple[Any, Any]]) -> None:
        for worker, (x, y) in zip(self._workers, batches, strict=True):
            worker.begin(x, y)
        before = self._workers[0].in_flight
        for worker in self._workers:
            worker.end()
        self._averages += before and not self._workers[0].in_flight

    def _add(self, epoch: int | None, *, tested: bool) -> None:
        """Add a row of all workers' figures."""
        test: Mapping[str, Any] = {}
        distances: Sequence[float] | None = None
        if epoch is not None:
            distances = self._take_mean()
        if tested and self._course.test is not None:
            test = self._evaluation.of(self._test, self._ranks, self._seats)
        figures = [worker.figures.take() for worker in self._workers]
        names = sorted(figures[0])
        parts = [
            self._vector([*(each[name] for name in names), float(worker.average.sent_bytes)])
            for worker, each in zip(self._workers, figures, strict=True)
        ]
        for worker in self._workers:
            worker.average.sent_bytes = 0
        row = self._timed(
            merged_row(
                [
                    dict(zip([*names, "bytes"], part.tolist(), strict=True))
                    for part in gathered(self._seats, parts)
                ],
                epoch=epoch,
                step=self.step,
                time_s=self._time_s(),
                trained_s=self._trained_s,
                averages=self._averages,
                learning_rate=self._workers[0].optimizer.param_groups[0]["lr"],
                test=test,
                distances=distances,
            )
        )
        self._trained_s, self._averages = 0.0, 0
        self.rows.append(row)
        self._voted_step = self.step - _VOTE_STEPS
        if 0 in self._ranks and self._on_rows is not None:
            self._on_rows([row])

    def _take_mean(self) -> list[float]:
        """Put the mean of all replicas into `model`; return how far each one is from it."""
        flats = [worker.weights.read() for worker in self._workers]
        mean = self._mean(flats)
        FlatTensors(trainable(self.model)).write(mean)
        buffers = [FlatTensors(averaged_buffers(worker.model)) for worker in self._workers]
        if buffers[0].numel:
            statistics = self._mean([each.read() for each in buffers])
            FlatTensors(averaged_buffers(self.model)).write(statistics)
        counts = zip(self.model.buffers(), self._workers[0].model.buffers(), strict=True)
        for mine, theirs in counts:
            if not mine.is_floating_point():
                mine.copy_(theirs)
        load_extra_states(self.model, extra_states(self._workers[0].model))
        parts = [self._vector([float((flat - mean).norm())]) for flat in flats]
        return [float(part) for part in gathered(self._seats, parts)]

    def _mean(self, flats: Sequence[Tensor]) -> Tensor:
        return summed(self._seats, [flat.clone() for flat in flats]).div_(self.size)

    def _vector(self, numbers: Sequence[float]) -> Tensor:
        device = self._workers[0].settings.device
        return torch.tensor(numbers, dtype=torch.float64, device=device)

    def _look_up(self) -> None:
        """End if that is asked, or keep a checkpoint if one is due, where nothing is in flight."""
        if self._workers[0].in_flight:
            return
        plan = self._course.checkpoints
        since_steps = self.step - self._saved_step
        kept = self._keeper is not None and plan.on
        due = kept and plan.due(self.step, since_steps, 0.0)
        timed = kept and plan.every_s > 0
        if (kept or self._course.listened) and self.step - self._voted_step >= _VOTE_STEPS:
            self._voted_step = self.step
            since_s = self._clock() - self._saved_s
            self.stopped, late, self.left = self._first_says(
                self._course.listened and self.rows and self._asked(),
                timed and plan.due(self.step, since_steps, since_s),
                kept and self._is_to_leave(),
            )
            due = due or late or self.left
        if due and not self.stopped:
            self._checkpoint()

    def _is_to_leave(self) -> bool:
        """Ask now and then whether to save and go: asking costs a call of an actor."""
        now_s = self._clock()
        if 0 not in self._ranks or now_s - self._leaves_asked_s < _LEAVES_S:
            return False
        self._leaves_asked_s = now_s
        return self._leaves()

    def _checkpoint(self) -> None:
        """Keep a checkpoint."""
        if self._keeper is None:
            return
        loop = self.state()
        self._keeper.keep(
            self.step,
            [
                {
                    "worker": worker.settings.worker,
                    "replica": worker.state(),
                    "figures": worker.figures.state(),
                    "loop": loop if worker.settings.worker == 0 else {**loop, "rows": []},
                }
                for worker in self._workers
            ],
        )
        self._saved_step, self._saved_s = self.step, self._clock()

    def _first_says(self, *own: object) -> list[bool]:
        """Return what the first worker holds to be true, at all workers."""
        parts = [
            self._vector([float(bool(each) and worker.settings.worker == 0) for each in own])
            for worker in self._workers
        ]
        return [bool(each > 0) for each in summed(self._seats, parts)]

    def _time_s(self) -> float:
        return self._before_s + self._clock() - self._began
