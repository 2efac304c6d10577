"""When a simulated run reaches a goal, as somebody sees it who sees server and workers at once.

A certificate asks every worker for its part, and so is as late as the slowest message. Here nobody
is asked: after a message is applied, w is read at the server and the duals at the workers, those
included that wait to be told that they count. For them (3.3) holds, so that the gap is

    P(w) - D(α) = 1/n Σ (φ_i(w) + φ*_i(-α_i)) + λ |w|²

and takes one pass over the rows. It is looked at the more often the nearer it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from actors.server.ends import Ends
from actors.server.staleness import Bound
from raylab.algorithms.server.dual_worker import DualWorker
from raylab.algorithms.server.parts import as_vector
from raylab.algorithms.server.primal_rules import PrimalWorker
from raylab.algorithms.server.rule_factory import ServerSettings, bound, server_rule, worker_rule
from raylab.algorithms.server.stragglers import Straggler
from raylab.errors import NonFiniteLossError
from raylab.problems import Objective
from raylab.problems.objective import Vector
from raylab.simulator import Applied, Timing, run_rules

__all__ = ["Arrival", "Goal", "arrival"]

_FINEST = 96
"""Looks in an epoch, at most."""
_LOST = 1e4
"""A figure so many times the first one does not come back."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When a run has arrived.

    Args:
        tolerance: largest figure that is good enough.
        least: the least value of P; None: the figure is the duality gap, else it is P(w) - least.
        epochs: after which a run has not arrived.
    """

    tolerance: float
    least: float | None = None
    epochs: float = 400.0


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """How one run came to its goal: infinity where it did not."""

    time_s: float
    epochs: float
    messages: int


class _Observer:
    """Looks now and then, and says when it has seen enough."""

    def __init__(
        self,
        settings: ServerSettings,
        objectives: Sequence[Objective],
        goal: Goal,
        before_s: float,
    ) -> None:
        zero = np.zeros(settings.dim)
        start = zero if settings.traits.duals else objectives[0].initial()
        self.server = server_rule(settings, start)
        self.workers = [worker_rule(settings, each, k) for k, each in enumerate(objectives)]
        self.found: Arrival | None = None
        self._settings = settings
        self._goal = goal
        self._before_s = before_s
        self._applied: dict[int, object] = {}
        """By worker: the change of duals that its newest applied message belongs to."""
        self._samples = self._messages = 0
        self._next = settings.n / 8
        self._last: tuple[float, float] | None = None
        self._first = math.inf

    def told(self, one: Applied) -> bool:
        """Take note of a message; tell whether the run may end."""
        worker = self.workers[one.worker]
        self._messages += 1
        self._samples += worker.samples()
        if isinstance(worker, DualWorker):
            self._applied[one.worker] = worker.pending
        if self._samples < self._next or self._amid_a_round:
            return one.time_s > self._before_s
        with np.errstate(over="ignore", invalid="ignore"):
            figure = self._figure()
        epochs = self._samples / self._settings.n
        if figure <= self._goal.tolerance:
            self.found = Arrival(time_s=one.time_s, epochs=epochs, messages=self._messages)
            return True
        self._first = min(self._first, figure)
        self._next = self._samples + self._pause(figure)
        self._last = (self._samples, figure)
        return one.time_s > self._before_s or not figure < _LOST * self._first

    @property
    def _amid_a_round(self) -> bool:
        return self.server.phase().gather and self._messages % len(self.workers) != 0

    def _pause(self, figure: float) -> float:
        """Return the samples until the next look: half of what there seems to be left."""
        n = self._settings.n
        if self._last is None or not figure < self._last[1]:
            return n / 8
        samples, before = self._last
        rate = math.log(before / figure) / (self._samples - samples)
        return max(n / _FINEST, min(n, 0.5 * math.log(figure / self._goal.tolerance) / rate))

    def _figure(self) -> float:
        settings = self._settings
        w: Vector = as_vector(self.server.answer(-1)[0])
        total = sum(worker.objective.losses(w) for worker in self.workers)
        square = settings.strength * float(w @ w)
        if self._goal.least is not None:
            return total / settings.n + square / 2 - self._goal.least
        total += sum(self._conjugates(k, worker) for k, worker in enumerate(self.workers))
        return total / settings.n + square

    def _conjugates(self, k: int, worker: DualWorker | PrimalWorker) -> float:
        if not isinstance(worker, DualWorker):
            raise TypeError("a duality gap needs workers with duals")
        duals, change = worker.duals, worker.pending
        if change is not None and change is self._applied.get(k):
            duals = duals.copy()
            duals[change[0]] += change[1]
        found = worker.objective.conjugates(duals)
        return math.inf if found is None else found


def arrival(
    settings: ServerSettings,
    objectives: Sequence[Objective],
    goal: Goal,
    timing: Timing,
    straggler: Straggler,
    before_s: float = math.inf,
) -> Arrival:
    """Return the virtual seconds and the epochs until a run reaches its goal.

    Args:
        settings: of the method; with an eta in numbers, as nobody judges it here.
        objectives: one a worker.
        goal: to be reached.
        timing: of the machine.
        straggler: what slows the workers down.
        before_s: a time after which it is of no interest any more.
    """
    observer = _Observer(settings, objectives, goal, before_s)
    most = bound(settings)
    worker: Callable[[int], DualWorker | PrimalWorker] = observer.workers.__getitem__
    with contextlib.suppress(NonFiniteLossError):
        run_rules(
            observer.server,
            worker,
            settings.workers,
            Ends(samples=goal.epochs * settings.n),
            straggler=straggler,
            timing=timing,
            bound=Bound(updates=most.updates, late=most.late),
            broadcast_every=settings.broadcast,
            epoch_samples=settings.n,
            until=observer.told,
        )
    return observer.found or Arrival(time_s=math.inf, epochs=math.inf, messages=0)
