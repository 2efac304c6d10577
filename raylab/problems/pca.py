"""The step of principal components by shift and invert: a sum of quadratics, each perhaps concave.

    φ_i(w) = ½ wᵀ((μ - λ)I - x_i x_iᵀ)w - bᵀw          P(w) = ½ wᵀ(μI - C)w - bᵀw          (3.40)

with C = 1/n Σ x_i x_iᵀ. P is convex where μ is above C's largest eigenvalue; φ_i is not where
μ - λ < ‖x_i‖², which is 1 for the rows of `pca:n=N,d=D`: with the paper's μ = 100 every φ_i is
convex, and with a μ between C's largest eigenvalue and 1 + λ none is.

Differs from the paper: section 3.1 has μ - λ/2 in φ_i, with which P would not be the above.
"""

from __future__ import annotations

import numpy as np

from raylab.data.augment import Stream, keyed_generator
from raylab.data.rows import RowBlock
from raylab.problems import kernels
from raylab.problems.objective import Rows, Shard, Vector
from raylab.problems.spectrum import check_norms
from raylab.problems.vector_duals import VectorDuals

__all__ = ["Pca"]


class Pca(VectorDuals):
    """The objective of (3.40) on the dense rows of a shard; satisfies `DualObjective`.

    Args:
        block: dense rows; labels are not looked at.
        shard: which rows they are.
        strength: λ.
        mu: μ, above C's largest eigenvalue.
        seed: keys b, a normal vector scaled to the norm 1.
    """

    def __init__(
        self, block: RowBlock, shard: Shard, *, strength: float, mu: float, seed: int
    ) -> None:
        block.matrix()  # raises where the rows are sparse
        self.shard = shard
        self.dim = block.dim
        self.strength = strength
        self.mu = mu
        b = keyed_generator(Stream.SAMPLES, seed, 3).standard_normal(block.dim)
        self.b: Vector = b / np.linalg.norm(b)
        self._shift = mu - strength
        self._values = block.values
        self._rows = (block.indptr, np.zeros(0, dtype=np.int32), block.values)
        self._rows[1].flags.writeable = False
        self._all = np.arange(block.rows)
        norms = np.empty(block.rows)
        kernels.square_norms(block.indptr, block.values, norms)
        check_norms(norms, shard)
        self.smoothness = self._smoothness(norms)
        self.convex = bool(self._shift >= norms.max())

    def initial(self) -> Vector:
        """Return zeros: the w of α = 0 (3.3)."""
        return np.zeros(self.dim)

    def losses(self, w: Vector) -> float:
        """Return Σ φ_i(w) over the shard."""
        z = self._products(w, self._all)
        each = 0.5 * self._shift * float(w @ w) - float(self.b @ w)
        return self.shard.rows * each - 0.5 * float(z @ z)

    def gradients(self, w: Vector, rows: Rows | None = None) -> Vector:
        """Return Σ (μ - λ)w - x_i(x_i·w) - b over `rows`, or over the shard."""
        rows = self._all if rows is None else rows
        total = np.zeros(self.dim)
        kernels.add_rows(*self._rows, self._products(w, rows), rows, total)
        return len(rows) * (self._shift * w - self.b) - total

    def figures(self, w: Vector) -> dict[str, float]:  # noqa: ARG002  # no figure needs it
        """Return nothing: there are no labels."""
        return {}

    def curvature(self) -> float:
        """Return (μ - λ) times the rows: what x_i x_iᵀ takes from it is left out of the bound."""
        return self.shard.rows * self._shift

    def residuals(self, w: Vector, duals: Vector, rows: Rows) -> Vector:
        """Return ∇φ_i(w) + α_i for `rows`, shape=(len(rows), dim)."""
        out = np.empty((len(rows), self.dim))
        kernels.pca_residuals(self._values, self._shift, self.b, w, duals, rows, out)
        return out

    def _products(self, w: Vector, rows: Rows) -> Vector:
        z = np.empty(len(rows))
        kernels.products(*self._rows, w, rows, z)
        return z

    def _smoothness(self, square_norms: Vector) -> float:
        """The Hessian's eigenvalues are μ - λ, and once μ - λ - ‖x_i‖²."""
        return max(abs(self._shift), abs(self._shift - float(square_norms.max())))
