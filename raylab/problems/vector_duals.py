"""Pseudo-duals of losses that are no function of one product x_i·w: a vector for every sample."""

from __future__ import annotations

import numpy as np

from raylab.errors import ResourceError
from raylab.problems.objective import Rows, Shard, Vector

__all__ = ["VectorDuals"]

_MOST_BYTES = 2**36  # 64 GiB: beyond it, a mistake


class VectorDuals:
    """What `DualObjective`s have in common whose duals are (rows, dim): O(n·dim) memory.

    They have no duality gap: the certificate is the norm of the gradient.
    """

    shard: Shard
    dim: int
    smoothness: float

    def zero_duals(self) -> Vector:
        """Return zeros, shape=(rows, dim).

        Raises:
            ResourceError: they would take more than 64 GiB.
        """
        size_bytes = self.shard.rows * self.dim * 8
        if size_bytes > _MOST_BYTES:
            raise ResourceError(
                "a dual method keeps dim numbers for every sample of such a problem, but "
                f"{self.shard.rows} rows of {self.dim} numbers are {size_bytes / 2**30:.0f} GiB "
                "on one worker; take asysvrg, which keeps none, or more workers"
            )
        return np.zeros((self.shard.rows, self.dim))

    def combine(self, rows: Rows, kappas: Vector) -> Vector:  # noqa: ARG002  # kappas have it all
        """Return Σ κ_i."""
        total: Vector = kappas.sum(axis=0)
        return total

    def dual_sum(self, duals: Vector) -> Vector:
        """Return Σ α_i over the shard."""
        total: Vector = duals.sum(axis=0)
        return total

    def conjugates(self, duals: Vector) -> None:
        """Return None: there is no gap."""

    def feasible(self, duals: Vector) -> Vector:
        """Return the duals."""
        return duals

    def row_smoothness(self) -> Vector:
        """Return the smoothness of the shard, for each row."""
        return np.full(self.shard.rows, self.smoothness)
