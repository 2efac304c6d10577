"""What an algorithm of the parameter server needs of a problem, on one worker's samples.

    P(w) = 1/n Σ φ_i(w) + λ/2 ‖w‖²                                                  (3.1) of HUO

An objective is bound to rows lo..hi of n samples. Sums are over its own rows, never means: whoever
adds them up over the workers divides by n. Vectors are float64 arrays (dim,), row numbers are int64
arrays that count from 0 at `lo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["DualObjective", "LinearObjective", "Objective", "Rows", "Shard", "Sparse", "Vector"]

Vector = NDArray[np.float64]
Rows = NDArray[np.int64]
Sparse = tuple[Rows, Vector]
"""The coordinates of a vector that are not zero, ascending, and their values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Rows lo..hi (hi excluded) of n."""

    lo: int
    hi: int
    n: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.hi - self.lo


@runtime_checkable
class Objective(Protocol):
    """Losses of a shard, and their gradients."""

    shard: Shard
    dim: int
    strength: float
    """λ, of the whole objective; no loss has it in it."""
    smoothness: float
    """L: the gradient of every φ_i of the shard is L-Lipschitz (3.9)."""
    convex: bool
    """Whether every φ_i is."""

    def initial(self) -> Vector:
        """Return the w to begin with."""
        ...

    def losses(self, w: Vector) -> float:
        """Return Σ φ_i(w) over the shard."""
        ...

    def gradients(self, w: Vector, rows: Rows | None = None) -> Vector:
        """Return Σ ∇φ_i(w) over `rows`, or over the shard."""
        ...

    def figures(self, w: Vector) -> dict[str, float]:
        """Return further sums over the shard that a metric is made of, e.g. `correct`."""
        ...

    def curvature(self) -> float:
        """Return an upper bound of the largest eigenvalue of Σ ∇²φ_i over the shard, at any w;
        for objectives that are not quadratic or linear models, an estimate at the initial w.
        """
        ...


@runtime_checkable
class DualObjective(Objective, Protocol):
    """An objective for methods that keep a pseudo-dual α_i for every sample.

    The duals of the shard are an array (rows,) where ∇φ_i(w) = x_i·a_i(w), which is then what is
    kept, and (rows, dim) elsewhere.
    """

    def zero_duals(self) -> Vector:
        """Return α = 0 for every row of the shard."""
        ...

    def residuals(self, w: Vector, duals: Vector, rows: Rows) -> Vector:
        """Return κ_i = ∇φ_i(w) + α_i (3.6) for `rows`, in the form of the duals."""
        ...

    def combine(self, rows: Rows, kappas: Vector) -> Vector | Sparse:
        """Return Σ κ_i over `rows` as a vector; or, where that is smaller, its coordinates that
        are not zero, ascending, and their values.
        """
        ...

    def dual_sum(self, duals: Vector) -> Vector:
        """Return Σ α_i over the shard: λ n times its share of w (3.3)."""
        ...

    def conjugates(self, duals: Vector) -> float | None:
        """Return Σ φ*_i(-α_i) over the shard; None where the problem has no duality gap.

        It is infinite, and so is the gap, where an α_i is outside the domain of its conjugate:
        a step with ηλn > 1 can carry it there. `feasible` gives a point that has a finite one.
        """
        ...

    def feasible(self, duals: Vector) -> Vector:
        """Return the nearest duals inside the domain of the conjugates: `duals` itself where they
        are. The gap is an upper bound of P(w) - P(w*) for any duals, if `conjugates` and
        `dual_sum` get the same ones.
        """
        ...

    def row_smoothness(self) -> Vector:
        """Return the Lipschitz constant of each ∇φ_i of the shard, for importance sampling."""
        ...


@runtime_checkable
class LinearObjective(DualObjective, Protocol):
    """A linear model: the conjugates are known, so that one dual can be set to its best value.

    Both passes go over `rows` in their order, in which a row may come again, and return: the rows
    that were changed, the change of their duals, and Σ change of α_i as a vector, that is λn times
    the change of w. `duals` and `w` are not written to.
    """

    def coordinate_ascent(
        self, w: Vector, duals: Vector, rows: Rows, sigma: float = 1.0
    ) -> tuple[Rows, Vector, Vector | Sparse]:
        """Maximise (3.4) over one dual after the other, w moving along: SDCA.

        `sigma`, the σ' of CoCoA+, multiplies the quadratic term: w moves along σ' times as far.
        """
        ...

    def dual_free_pass(
        self, w: Vector, duals: Vector, rows: Rows, eta: float
    ) -> tuple[Rows, Vector, Vector | Sparse]:
        """Make the steps of dfSDCA (algorithm 5), w moving along."""
        ...
