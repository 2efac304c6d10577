"""Small problems for tests of the parameter server, with the settings that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raylab.algorithms.server.rule_factory import ServerSettings
from raylab.data.rows import RowBlock
from raylab.problems import kernels, shards
from raylab.problems.linear import LinearModel, Loss
from raylab.problems.objective import Objective
from raylab.problems.pca import Pca
from tests.reference.parameter_server import Linear

__all__ = ["Recorded", "linear", "linear_objectives", "pca_objectives", "settings_for"]


def linear(
    n: int = 60, d: int = 5, *, strength: float = 0.1, logistic: bool = False, seed: int = 0
) -> Linear:
    """Return a random linear problem, its rows of norm about 1, its labels ±1."""
    draws = np.random.default_rng(seed)
    x = draws.standard_normal((n, d)) / np.sqrt(d)
    noise = 0.3 * draws.standard_normal(n)
    y = np.where(x @ draws.standard_normal(d) + noise > 0, 1.0, -1.0)
    return Linear(x, y, strength, logistic)


class Recorded(LinearModel):
    """A linear model that notes the rows of every message."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list[list[int]] = []

    def combine(self, rows: Any, kappas: Any) -> Any:
        self.batches.append(rows.tolist())
        return super().combine(rows, kappas)

    def coordinate_ascent(self, w: Any, duals: Any, rows: Any, sigma: float = 1.0) -> Any:
        self.batches.append(rows.tolist())
        return super().coordinate_ascent(w, duals, rows, sigma)

    def dual_free_pass(self, w: Any, duals: Any, rows: Any, eta: float) -> Any:
        self.batches.append(rows.tolist())
        return super().dual_free_pass(w, duals, rows, eta)


def linear_objectives(problem: Linear, workers: int) -> list[Recorded]:
    """Return a linear problem's shards."""
    loss = Loss(code=kernels.LOGISTIC if problem.logistic else kernels.RIDGE)
    return [
        Recorded(
            RowBlock.of_matrix(problem.x[shard.lo : shard.hi], problem.y[shard.lo : shard.hi]),
            shard,
            strength=problem.strength,
            loss=loss,
        )
        for shard in shards(problem.n, workers)
    ]


def pca_objectives(
    workers: int, *, n: int = 200, d: int = 8, mu: float = 0.5, strength: float = 0.05
) -> list[Pca]:
    """Return the shards of (3.40) on unit rows, every φ_i non-convex while P is convex."""
    draws = np.random.default_rng(1)
    x = draws.standard_normal((n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return [
        Pca(
            RowBlock.of_matrix(x[shard.lo : shard.hi], np.zeros(shard.rows)),
            shard,
            strength=strength,
            mu=mu,
            seed=0,
        )
        for shard in shards(n, workers)
    ]


def settings_for(method: str, objectives: Sequence[Objective], **options: Any) -> ServerSettings:
    """Return the settings of a method on these shards."""
    first = objectives[0]
    return ServerSettings(
        method=method,
        workers=len(objectives),
        n=first.shard.n,
        dim=first.dim,
        strength=first.strength,
        smoothness=max(each.smoothness for each in objectives),
        curvature=sum(each.curvature() for each in objectives) / first.shard.n,
        convex=all(each.convex for each in objectives),
        **options,
    )
