"""Linear models: φ_i(w) = ℓ(x_i·w, y_i), on sparse or dense rows, with one dual number a sample.

    P(w) = 1/n Σ ℓ(x_i·w, y_i) + λ/2 ‖w‖²                        ∇φ_i(w) = x_i·ℓ'(x_i·w, y_i)
    D(α) = -1/n Σ ℓ*(-a_i, y_i) - λ/2 ‖1/(λn) Σ α_i‖²            α_i = x_i·a_i

The losses and their conjugates are in `kernels.py`, which does the arithmetic.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from raylab.data.rows import RowBlock
from raylab.errors import DataError
from raylab.problems import kernels
from raylab.problems.objective import Rows, Shard, Sparse, Vector
from raylab.problems.spectrum import check_norms, largest_eigenvalue

__all__ = ["LinearModel", "Loss"]

_NO_COLUMNS = np.zeros(0, dtype=np.int32)
_NO_COLUMNS.flags.writeable = False
_SHORT = 2048  # coordinates, 16 kB: sorting out which are not zero takes longer than sending all


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One of the losses of `kernels.py`."""

    code: int
    gamma: float = 1.0  # of the smoothed hinge

    @property
    def curvature(self) -> float:
        """The largest ℓ''."""
        return {kernels.RIDGE: 1.0, kernels.LOGISTIC: 0.25}.get(self.code, 1.0 / self.gamma)

    @property
    def signed(self) -> bool:
        """Whether labels must be ±1; a dual number y·a is then in [0, 1]."""
        return self.code != kernels.RIDGE


class _Scratch(threading.local):
    """Zeroed arrays that a thread uses again, and leaves zeroed."""

    def __init__(self, dim: int, rows: int) -> None:
        self.vector = np.zeros(dim)
        self.columns = np.zeros(dim + -dim % 8, dtype=np.uint8)
        self.change = np.zeros(rows)
        self.rows = np.zeros(rows, dtype=np.uint8)


class LinearModel:
    """A linear model on the rows of a shard; satisfies `LinearObjective`.

    Args:
        block: rows of the shard; of two classes the labels must be ±1, ridge takes them as they
            stand in the data.
        shard: which rows they are.
        strength: λ.
        loss: ℓ.

    Raises:
        DataError: labels are not ±1, a row's columns are odd, or the rows' squares overflow.
    """

    convex = True

    def __init__(self, block: RowBlock, shard: Shard, *, strength: float, loss: Loss) -> None:
        self.shard = shard
        self.dim = block.dim
        self.strength = strength
        self.loss = loss
        self.labels = block.labels if loss.signed else block.targets
        if loss.signed and not np.all(np.abs(self.labels) == 1.0):
            raise DataError(
                "a loss of two classes needs labels that are -1 or 1, but those of rows "
                f"{shard.lo} to {shard.hi - 1} go from {self.labels.min():g} to "
                f"{self.labels.max():g}: let the rows' source give numpy.where(y > …, 1.0, -1.0)"
            )
        most = float(np.abs(self.labels).max(initial=0.0))
        if most * most * shard.n == np.inf:
            raise DataError(
                f"the squares of labels must have a finite sum, but one of rows {shard.lo} to "
                f"{shard.hi - 1} is {most:.3g} in size: scale the labels"
            )
        indices = _NO_COLUMNS if block.indices is None else block.indices
        self._rows = (block.indptr, indices, block.values)
        self._dense = block.dense
        if not block.dense:
            # Compiled code would read and write outside of its arrays.
            odd = kernels.odd_row(block.indptr, indices, block.dim, len(block.values))
            if odd >= 0:
                raise DataError(
                    f"columns of a row must be different numbers from 0 to {block.dim - 1}, but "
                    f"row {shard.lo + odd} of the source's block has others: give, for instance, "
                    "scipy's CSR matrix after sum_duplicates()"
                )
        self._all = np.arange(block.rows)
        self._norms = np.empty(block.rows)  # squared
        kernels.square_norms(block.indptr, block.values, self._norms)
        check_norms(self._norms, shard)
        self.smoothness = loss.curvature * float(self._norms.max())
        self._scratch = _Scratch(block.dim, block.rows)
        self._last: tuple[Vector, Vector] | None = None

    def initial(self) -> Vector:
        """Return zeros: the w of α = 0 (3.3)."""
        return np.zeros(self.dim)

    def losses(self, w: Vector) -> float:
        """Return Σ ℓ(x_i·w, y_i) over the shard."""
        return kernels.loss_sum(self.loss.code, self.loss.gamma, self._products(w), self.labels)

    def gradients(self, w: Vector, rows: Rows | None = None) -> Vector:
        """Return Σ x_i·ℓ'(x_i·w, y_i) over `rows`, or over the shard."""
        if rows is None:
            rows, z = self._all, self._products(w)
        else:
            z = np.empty(len(rows))
            kernels.products(*self._rows, w, rows, z)
        factors = np.empty(len(rows))
        kernels.slopes(self.loss.code, self.loss.gamma, z, self.labels, rows, factors)
        return self._sum(rows, factors)

    def figures(self, w: Vector) -> dict[str, float]:
        """Return `correct`: of how many samples x_i·w has the label's sign; {} of quantities."""
        if not (self.loss.signed or np.all(np.abs(self.labels) == 1.0)):
            return {}
        return {"correct": float(np.count_nonzero(self._products(w) * self.labels > 0.0))}

    def curvature(self) -> float:
        """Return an upper bound of the largest eigenvalue of Σ x_i x_iᵀ ℓ''."""
        return self.loss.curvature * largest_eigenvalue(
            lambda v: self._sum(self._all, self._dot(v)), self.dim, float(self._norms.sum())
        )

    def zero_duals(self) -> Vector:
        """Return zeros, one for every row of the shard."""
        return np.zeros(self.shard.rows)

    def residuals(self, w: Vector, duals: Vector, rows: Rows) -> Vector:
        """Return ℓ'(x_i·w, y_i) + a_i for `rows` (3.6)."""
        out = np.empty(len(rows))
        kernels.residuals(
            *self._rows, self.labels, self.loss.code, self.loss.gamma, w, duals, rows, out
        )
        return out

    def combine(self, rows: Rows, kappas: Vector) -> Vector | Sparse:
        """Return Σ x_i·κ_i over `rows`: as coordinates and values where these are fewer numbers,
        and the vector is not short.
        """
        if self._dense or self.dim < _SHORT or 2 * len(rows) >= self.dim:
            return self._sum(rows, kappas)
        scratch = self._scratch
        columns, sums = kernels.add_rows_sparse(
            *self._rows, kappas, rows, scratch.vector, scratch.columns
        )
        return sums if len(sums) == self.dim else (columns, sums)

    def dual_sum(self, duals: Vector) -> Vector:
        """Return Σ x_i·a_i over the shard."""
        return self._sum(self._all, duals)

    def conjugates(self, duals: Vector) -> float:
        """Return Σ ℓ*(-a_i, y_i) over the shard; infinity where one is outside its domain."""
        return kernels.conjugate_sum(self.loss.code, self.loss.gamma, duals, self.labels)

    def feasible(self, duals: Vector) -> Vector:
        """Return the duals with each y·a_i put into [0, 1], if the loss is of two classes."""
        if not self.loss.signed:
            return duals
        b = self.labels * duals
        return duals if b.min() >= 0.0 and b.max() <= 1.0 else self.labels * b.clip(0.0, 1.0)

    def row_smoothness(self) -> Vector:
        """Return ‖x_i‖² times the largest ℓ''."""
        return self.loss.curvature * self._norms

    def coordinate_ascent(
        self, w: Vector, duals: Vector, rows: Rows, sigma: float = 1.0
    ) -> tuple[Rows, Vector, Vector | Sparse]:
        """Maximise (3.4) over one dual after the other: exactly for ridge and the smoothed hinge,
        by Newton's method for logistic loss.

        With `sigma` this is the local problem of CoCoA+, whose quadratic term is σ' times that of
        (3.4), so that the changes of K = σ' workers may be added.

        Reference:
            Ma et al. 2015, arXiv:1502.03508.
        """
        return self._pass(w, duals, rows, sigma / (self.strength * self.shard.n), 0.0)

    def dual_free_pass(
        self, w: Vector, duals: Vector, rows: Rows, eta: float
    ) -> tuple[Rows, Vector, Vector | Sparse]:
        """Make the steps of dfSDCA: κ = ∇φ_i(w) + α_i, α_i -= ηλn·κ, w -= η·κ (algorithm 5)."""
        scale = 1.0 / (self.strength * self.shard.n)
        return self._pass(w, duals, rows, scale, eta * self.strength * self.shard.n)

    def shared_steps(
        self,
        w: Vector,
        start: Vector,
        start_slopes: Vector,
        gradient: Vector,
        eta: float,
        rows: Rows,
        blocks: Rows,
        block: int,
        thread: int,
        threads: int,
        done: Rows,
        staleness: Rows,
    ) -> None:
        """Make one thread's share of the steps of AsySVRG, see `kernels.shared_steps`."""
        kernels.shared_steps(
            *self._rows,
            self.labels,
            self.loss.code,
            self.loss.gamma,
            w,
            start,
            start_slopes,
            gradient,
            self.strength,
            eta,
            rows,
            blocks,
            block,
            thread,
            threads,
            done,
            staleness,
        )

    def _pass(
        self, w: Vector, duals: Vector, rows: Rows, scale: float, step: float
    ) -> tuple[Rows, Vector, Vector | Sparse]:
        scratch = self._scratch
        u = w.copy()
        touched = np.empty(min(len(rows), self.shard.rows), dtype=np.int64)
        count = kernels.sequential_pass(
            *self._rows,
            self.labels,
            self.loss.code,
            self.loss.gamma,
            u,
            duals,
            rows,
            self._norms,
            scale,
            step,
            scratch.change,
            scratch.rows,
            touched,
        )
        touched = touched[:count]
        change = scratch.change[touched]
        scratch.change[touched] = 0.0
        scratch.rows[touched] = 0
        if self._dense or self.dim < _SHORT or 2 * count >= self.dim:
            # The way that u went; its rounding is that of one addition to w.
            return touched, change, (u - w) / scale
        return touched, change, self.combine(touched, change)

    def _dot(self, w: Vector) -> Vector:
        z = np.empty(self.shard.rows)
        kernels.products(*self._rows, w, self._all, z)
        return z

    def _products(self, w: Vector) -> Vector:
        """Return x_i·w of every row; a certificate asks for them three times at one w."""
        if (last := self._last) is not None and np.array_equal(last[0], w):
            return last[1]
        z = self._dot(w)
        self._last = (w.copy(), z)
        return z

    def _sum(self, rows: Rows, factors: Vector) -> Vector:
        total = np.zeros(self.dim)
        kernels.add_rows(*self._rows, factors, rows, total)
        return total
