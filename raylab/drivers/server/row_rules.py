"""The rules that minimise an objective on rows of data, with what only the data can tell."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from actors.server.protocols import ServerRule
from actors.server.staleness import Bound
from raylab.algorithms.server.rule_factory import (
    ServerSettings,
    bound,
    figure,
    notes,
    worker_rule,
)
from raylab.algorithms.server.shards import Cut, slice_rule
from raylab.drivers.server.numbers import first_w, resolved, with_facts
from raylab.drivers.server.workload import Facts, Workload, facts_of
from raylab.problems.objective import Objective, Vector

__all__ = ["RowRules"]


class RowRules:
    """One method on one workload, see `raylab.drivers.server.run.Rules`.

    Args:
        settings: with constants that only the data can tell still to be found.
        workload: what is trained.
    """

    divided = True

    def __init__(self, settings: ServerSettings, workload: Workload) -> None:
        self.settings = settings
        self.workload = workload
        self._w0: Vector | None = None

    @property
    def title(self) -> str:
        """The method and the problem."""
        return f"{self.settings.traits.title} {self.workload.title}"

    @property
    def epoch_samples(self) -> int:
        """Return n."""
        return self.settings.n

    @property
    def figure(self) -> str:
        """Which figure of a certificate the tolerance is of."""
        return figure(self.settings)

    @property
    def broadcast(self) -> int:
        """Return T."""
        return self.settings.broadcast

    @property
    def bound(self) -> Bound:
        """How stale a message may be."""
        most = bound(self.settings)
        return Bound(updates=most.updates, late=most.late)

    @property
    def synchronous(self) -> bool:
        """Whether a lost worker takes the whole run back."""
        return self.settings.synchronous

    @property
    def question(self) -> Callable[[Any], Facts]:
        """What is asked of each worker's objective."""
        return facts_of

    def supplies(self, workers: int) -> Mapping[int, Callable[[], Objective]]:
        """Return what makes the objective of each worker's shard."""
        return self.workload.supplies(workers)

    def settle(self, facts: Mapping[int, Facts], workers: int) -> None:
        """Let the settings have what the data says."""
        if self._w0 is None:
            self.settings = with_facts(self.settings, facts)
        self.settings = replace(self.settings, workers=workers)
        self._w0 = first_w(self.settings, facts[0])

    def cut(self, servers: int) -> Cut:
        """Return how w is cut among servers."""
        return Cut(dim=self.settings.dim, servers=servers)

    def server(self, servers: int = 1, shard: int = 0) -> Callable[[], ServerRule]:
        """Return what makes the rule of a server."""
        w0 = np.zeros(self.settings.dim) if self._w0 is None else self._w0
        return functools.partial(slice_rule, self.settings, w0, servers, shard)

    def worker(self, worker: int) -> Callable[[Any], Any]:
        """Return what makes a worker's rule of its objective."""
        return functools.partial(_worker_rule, self.settings, worker)

    @property
    def sums(self) -> Callable[[Any], Any] | None:
        """What the server must know of every worker's rule, where the workers are others."""
        return _dual_sum if self.settings.traits.duals else None

    def about(self) -> dict[str, Any]:
        """Return what makes a run this one and no other."""
        return {
            "strength": self.settings.strength,
            "batch": self.settings.batch,
            "sampling": self.settings.sampling,
            "problem": self.workload.title,
            "data": self.workload.data,
            "n": self.workload.n,
        }

    def since(self, about: Mapping[str, Any] | None) -> dict[str, Any]:
        """Take over how a run was begun; return what its checkpoints say of that."""
        self.workload = self.workload.since(about)
        return self.workload.kept()

    def described(self) -> dict[str, Any]:
        """Return the problem, its options and its data, as config.yaml has them."""
        return self.workload.described()

    def resolved(self) -> dict[str, Any]:
        """Return what was decided, by the settings' names."""
        return resolved(self.settings)

    def notes(self) -> list[str]:
        """Return what the theorems do not cover, and what else a user should know before a run."""
        return [*self.workload.notes(), *notes(self.settings)]


def _worker_rule(settings: ServerSettings, worker: int, objective: Objective) -> Any:
    return worker_rule(settings, objective, worker)


def _dual_sum(rule: Any) -> Vector:
    found: Vector = rule.objective.dual_sum(rule.duals)
    return found
