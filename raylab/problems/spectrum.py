"""The largest eigenvalue of a symmetric matrix that is known by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from raylab.errors import DataError
from raylab.problems.objective import Shard, Vector

__all__ = ["check_norms", "largest_eigenvalue", "power_iteration"]

_FEW_DIMENSIONS = 32  # below, the matrix itself takes fewer products than an iteration
_ACCURACY = 1e-2  # relative, of the iteration; more of it does no step size any good
_VECTORS = 10  # that the iteration keeps: as many products before the first look at accuracy


def check_norms(square_norms: Vector, shard: Shard) -> None:
    """Check that sums of the rows' products stay finite.

    Raises:
        DataError: they do not.
    """
    with np.errstate(over="ignore"):
        finite = np.isfinite(square_norms * shard.n)
    if not finite.all():
        raise DataError(
            "the square norms of rows must have a finite sum, but "
            f"{int(np.count_nonzero(~finite))} of rows {shard.lo} to {shard.hi - 1} have one "
            f"of up to {square_norms.max():.3g}: scale the columns of the data"
        )


def largest_eigenvalue(product: Callable[[Vector], Vector], dim: int, trace: float) -> float:
    """Return an upper bound of the largest eigenvalue of a positive semidefinite matrix.

    Lanczos' method from a keyed vector finds it from below to one per cent; two are added. The
    trace, an upper bound by itself, stands in where that does not converge.

    Args:
        product: A·v of v.
        dim: rows and columns of A.
        trace: of A.
    """
    if trace == 0.0:
        return 0.0
    if dim <= _FEW_DIMENSIONS:
        matrix = np.stack([product(unit) for unit in np.eye(dim)])
        found = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    else:
        operator = LinearOperator((dim, dim), matvec=product, dtype=np.float64)
        how = {"k": 1, "ncv": _VECTORS, "tol": _ACCURACY, "return_eigenvectors": False}
        try:
            found = eigsh(operator, v0=np.random.default_rng(0).standard_normal(dim), **how)
        except ArpackNoConvergence:
            return trace
    return min(trace, float(found[-1]) * (1.0 + 2.0 * _ACCURACY))


def power_iteration(
    gradient: Callable[[Vector], Vector], w: Vector, *, steps: int = 20, length: float = 1e-4
) -> float:
    """Estimate the largest absolute eigenvalue of a Hessian at w, from differences of gradients.

    Args:
        gradient: of the function.
        w: where.
        steps: products with the Hessian, each of which costs one gradient.
        length: Euclidean length of the differences, in units of 1 + ‖w‖.
    """
    length *= 1.0 + float(np.linalg.norm(w))
    at_w = gradient(w)
    direction = np.random.default_rng(0).standard_normal(len(w))
    norm = 0.0
    for _ in range(steps):
        size = float(np.linalg.norm(direction))
        if size == 0.0:
            return 0.0
        direction /= size
        direction = (gradient(w + length * direction) - at_w) / length
        norm = float(np.linalg.norm(direction))
    return norm
