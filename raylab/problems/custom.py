"""A user's own objective: a function that gives loss and gradient of a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from raylab.errors import ConfigError
from raylab.problems.objective import Rows, Shard, Vector
from raylab.problems.spectrum import power_iteration
from raylab.problems.vector_duals import VectorDuals

__all__ = ["Batch", "Custom", "custom"]

Batch = Callable[[Vector, Rows], tuple[float, Vector]]
"""Of w, shape=(dim,), and row numbers of the whole data, from 0 to n - 1: Σ φ_i(w) and Σ ∇φ_i(w)
over these rows, without the λ/2 ‖w‖² of the objective.
"""

_CHUNK = 1024  # rows of one call, where all of a shard are asked for
_SAMPLE = 256  # rows of which curvature is estimated
_SINGLE = 8  # rows of which smoothness is


def custom(
    batch: Batch,
    shard: Shard,
    *,
    dim: int,
    strength: float,
    initial: Vector | None = None,
    smoothness: float | None = None,
    convex: bool = False,
) -> Custom:
    """Return the objective of one shard of a user's problem.

    >>> from raylab.problems import shards
    >>> x = np.eye(3)
    >>> def batch(w, rows):
    ...     errors = x[rows] @ w - 1.0
    ...     return 0.5 * errors @ errors, errors @ x[rows]
    >>> objective = custom(batch, shards(3, 1)[0], dim=3, strength=0.1, convex=True)
    >>> objective.losses(np.zeros(3)), objective.gradients(np.zeros(3)).tolist()
    (1.5, [-1.0, -1.0, -1.0])

    Dual methods ask for the gradient of every sample, one call each, and keep dim numbers for each.

    Args:
        batch: gives loss and gradient of a batch; it is sent to the workers, so it must pickle.
        shard: the rows that this worker has.
        dim: of w.
        strength: λ >= 0; above 0 for dual methods.
        initial: w to begin with; None is zeros. Dual methods begin where α = 0 has its w: at zeros.
        smoothness: L; None estimates it at `initial` from differences of gradients.
        convex: whether every φ_i is.

    Raises:
        ConfigError: a number is out of its range, or `initial` has another shape than (dim,).
    """
    if dim < 1:
        raise ConfigError(f"`dim` must be at least 1, but got {dim}")
    if not 0.0 <= strength < np.inf:
        raise ConfigError(f"`strength` (λ) must be a finite number >= 0, but got {strength}")
    if smoothness is not None and not 0.0 < smoothness < np.inf:
        raise ConfigError(
            f"`smoothness` must be a finite number above 0, but got {smoothness}; None estimates it"
        )
    start = np.zeros(dim) if initial is None else np.array(initial, dtype=np.float64)
    if start.shape != (dim,):
        raise ConfigError(f"`initial` must have the shape ({dim},), but has {start.shape}")
    return Custom(batch, shard, start, strength=strength, smoothness=smoothness, convex=convex)


class Custom(VectorDuals):
    """An objective of a user's function, that `custom` makes; satisfies `DualObjective`."""

    def __init__(
        self,
        batch: Batch,
        shard: Shard,
        initial: Vector,
        *,
        strength: float,
        smoothness: float | None,
        convex: bool,
    ) -> None:
        self.shard = shard
        self.dim = len(initial)
        self.strength = strength
        self.convex = convex
        self._batch = batch
        self._initial = initial
        if smoothness is None:
            rows = np.arange(shard.rows)[:: max(1, shard.rows // _SINGLE)][:_SINGLE]
            smoothness = 2.0 * max(self._estimate(row[None]) for row in rows)
        self.smoothness = smoothness

    def initial(self) -> Vector:
        """Return the w to begin with."""
        return self._initial.copy()

    def losses(self, w: Vector) -> float:
        """Return Σ φ_i(w) over the shard."""
        return sum(self._call(w, rows)[0] for rows in self._chunks())

    def gradients(self, w: Vector, rows: Rows | None = None) -> Vector:
        """Return Σ ∇φ_i(w) over `rows`, or over the shard."""
        if rows is not None:
            return self._call(w, rows)[1]
        total = np.zeros(self.dim)
        for chunk in self._chunks():
            total += self._call(w, chunk)[1]
        return total

    def figures(self, w: Vector) -> dict[str, float]:  # noqa: ARG002  # the user gives none
        """Return nothing."""
        return {}

    def curvature(self) -> float:
        """Return an estimate at the initial w, of some rows, in proportion to all."""
        rows = np.arange(min(self.shard.rows, _SAMPLE))
        return self._estimate(rows) * self.shard.rows / len(rows)

    def residuals(self, w: Vector, duals: Vector, rows: Rows) -> Vector:
        """Return ∇φ_i(w) + α_i for `rows`, shape=(len(rows), dim)."""
        each = [self._call(w, row[None])[1] for row in rows]
        return np.stack(each) + duals[rows]

    def _chunks(self) -> list[Rows]:
        rows = np.arange(self.shard.rows)
        return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]

    def _call(self, w: Vector, rows: Rows) -> tuple[float, Vector]:
        """Call the user's function with rows of the whole data."""
        loss, gradient = self._batch(w, rows + self.shard.lo)
        gradient = np.asarray(gradient, dtype=np.float64)
        if gradient.shape != (self.dim,):
            raise ConfigError(
                f"the gradient of a batch must have the shape ({self.dim},), that of w, but the "
                f"objective's function gave {gradient.shape}; sum it over the rows"
            )
        return float(loss), gradient

    def _estimate(self, rows: Rows) -> float:
        return power_iteration(lambda w: self._call(w, rows)[1], self._initial)
