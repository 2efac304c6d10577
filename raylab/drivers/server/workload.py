"""What a parameter server trains: a problem on rows of data, in shards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raylab.algorithms.server.rule_factory import ServerMethod
from raylab.data import RowSource, open_rows
from raylab.errors import ConfigError, DataError
from raylab.problems import LinearObjective, Objective, Shard, build, shards
from raylab.problems.build import check
from raylab.problems.objective import Vector

__all__ = ["Facts", "Problem", "Workload", "check_needs", "facts_of", "workload"]

Problem = str | Callable[[Shard], Objective]
"""A name of `raylab.problems.PROBLEMS`, or what makes the objective of a shard."""
_LINEAR = ("ridge", "logistic", "smoothed_hinge")
_TARGETS, _AS_THEY_ARE = "targets", "as they are"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A problem on n rows. It is small and travels to every worker.

    Args:
        title: of the problem.
        data: what the rows are, as a spec; empty where only the objective knows.
        n: rows.
        dim: columns; 0 where only the objective knows.
        make: makes the objective of a shard.
        options: of the problem, with nothing left to a default.
        coded: the two numbers that are a regression's only targets, unless they are -1 and 1.
        on_signs: makes the objective of -1 and 1 in their place.
        signs: whether `make` does.
    """

    title: str
    data: str
    n: int
    dim: int
    make: Callable[[Shard], Objective]
    options: dict[str, Any] = field(default_factory=dict)
    coded: str = ""
    on_signs: Callable[[Shard], Objective] | None = None
    signs: bool = False

    def supplies(self, workers: int) -> dict[int, Callable[[], Objective]]:
        """Return what makes the objective of each worker's shard.

        Raises:
            ConfigError: there are more workers than rows.
        """
        return {
            worker: functools.partial(self.make, shard)
            for worker, shard in enumerate(shards(self.n, workers))
        }

    def since(self, about: Mapping[str, Any] | None) -> Workload:
        """Return what is trained where a run goes on.

        Earlier versions regressed the labels of two classes as -1 and 1, whatever they were: a run
        that was begun so goes on so.

        Args:
            about: what the checkpoint says of its run; None: there is none.
        """
        if not self.coded or about is None or about.get(_TARGETS) == _AS_THEY_ARE:
            return self
        return replace(self, make=self.on_signs or self.make, signs=True)

    def kept(self) -> dict[str, Any]:
        """Return what a checkpoint says for `since`."""
        return {_TARGETS: _AS_THEY_ARE} if self.coded and not self.signs else {}

    def notes(self) -> list[str]:
        """Return what a user should know before a run."""
        if not self.signs:
            return []
        return [
            f"this run goes on as an earlier version began it, with -1 and 1 in the place of the "
            f"labels {self.coded}: begin a new run to regress them as they are"
        ]

    def described(self) -> dict[str, Any]:
        """Return the problem, its options and its data, as config.yaml has them."""
        return {"problem": self.title, "options": self.options, "data": self.data or self.n}


def check_needs(problem: Problem, traits: ServerMethod) -> None:
    """Check that a method can train a problem with a name, before any of its rows is read.

    Raises:
        ConfigError: it cannot.
    """
    if isinstance(problem, str) and traits.needs == "linear" and problem not in _LINEAR:
        raise ConfigError(
            f"{traits.name} maximises the duals of linear models ({', '.join(_LINEAR)}), but got "
            f"problem={problem}: use dis_dfsdca, or a method without duals"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the objective of a shard says of itself; the curvature is its sum over the rows."""

    dim: int
    smoothness: float
    curvature: float
    convex: bool
    dual_width: int
    strength: float
    initial: Vector | None


def facts_of(objective: Objective) -> Facts:
    """Return what the numbers of a run depend on; the initial w comes from the first shard only."""
    return Facts(
        dim=objective.dim,
        smoothness=objective.smoothness,
        curvature=objective.curvature(),
        convex=objective.convex,
        dual_width=1 if isinstance(objective, LinearObjective) else objective.dim,
        strength=objective.strength,
        initial=objective.initial() if objective.shard.lo == 0 else None,
    )


def workload(
    problem: Problem, data: str | RowSource | int, *, strength: float, seed: int, **options: Any
) -> Workload:
    """Return a problem on its rows, checked as far as that goes without reading them.

    Args:
        problem: name, or what makes the objective of a shard.
        data: spec of `raylab.data.open_rows`, what it returns, or, for a problem that knows its own
            data, the number of its samples.
        strength: λ.
        seed: of generated rows.
        options: of a problem with a name.

    Raises:
        ConfigError: the problem, its options or the spec are unknown or out of range.
        DataError: a file is missing or malformed, or not of the problem's kind.
    """
    if isinstance(data, bool) or (not isinstance(data, str | int) and not hasattr(data, "block")):
        raise DataError(f"data must be a spec, rows or a number of samples, but got {data!r}")
    if not isinstance(problem, str):
        return _own(problem, data, options)
    if isinstance(data, int):
        raise DataError(
            f"data must be rows for problem={problem!r}, such as libsvm:PATH, but got {data}"
        )
    source = open_rows(data, seed=seed) if isinstance(data, str) else data
    found = check(problem, source, strength=strength, **options)
    coding = getattr(source, "coding", None) if problem == "ridge" else None
    make = functools.partial(_build, problem, source, strength, tuple(found.items()))
    return Workload(
        title=problem,
        data=source.name,
        n=source.n,
        dim=source.dim,
        make=make,
        options=found,
        coded="" if coding is None else f"{coding[0]:g} and {coding[1]:g}",
        on_signs=None if coding is None else functools.partial(make, signs=True),
    )


def _own(problem: Any, data: str | RowSource | int, options: dict[str, Any]) -> Workload:
    if not callable(problem):
        raise ConfigError(
            "problem must be a name, or a callable that makes the objective of a shard, but got "
            f"{type(problem).__name__}"
        )
    if options:
        raise ConfigError(f"options belong to problems with a name, but got {sorted(options)}")
    n = data if isinstance(data, int) else open_rows(data).n if isinstance(data, str) else data.n
    if n < 1:
        raise DataError(f"there must be a sample, but data={n}")
    inner = problem.func if isinstance(problem, functools.partial) else problem
    title = getattr(inner, "__qualname__", None) or type(inner).__name__
    spec = "" if isinstance(data, int) else data if isinstance(data, str) else data.name
    return Workload(title=title, data=spec, n=n, dim=0, make=problem)


def _build(
    problem: str,
    source: RowSource,
    strength: float,
    options: tuple[tuple[str, Any], ...],
    shard: Shard,
    signs: bool = False,
) -> Objective:
    return build(problem, source, shard, strength=strength, signs=signs, **dict(options))
