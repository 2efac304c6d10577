"""Real data as LIBSVM text: scikit-learn carries it, so that no test needs a file or a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import (
    dump_svmlight_file,
    load_breast_cancer,
    load_diabetes,
    load_digits,
)
from sklearn.preprocessing import MaxAbsScaler

__all__ = ["RealRows", "real_rows"]

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RealRows:
    """A file of LIBSVM text, and what stands in it.

    Args:
        spec: of `raylab.data.open_rows`.
        x: shape=(n, dim).
        y: shape=(n,), ±1 where there are two classes.
    """

    spec: str
    x: Vector
    y: Vector

    def ridge(self, strength: float) -> Vector:
        """Return the solution of the normal equations."""
        n, dim = self.x.shape
        hessian = self.x.T @ self.x / n + strength * np.eye(dim)
        solution: Vector = np.linalg.solve(hessian, self.x.T @ self.y / n)
        return solution

    def ridge_value(self, w: Vector, strength: float) -> float:
        """Return ridge's P(w)."""
        residuals = self.x @ w - self.y
        return float(residuals @ residuals / (2 * len(self.y)) + strength / 2 * w @ w)


def real_rows(name: str, folder: Path) -> RealRows:
    """Write one into a folder, with columns from -1 to 1.

    breast_cancer is 569 × 30, dense, of two classes; diabetes 442 × 10, with a quantity; digits
    1,797 × 64, half empty, even ones against odd ones.
    """
    load = {"breast_cancer": load_breast_cancer, "diabetes": load_diabetes, "digits": load_digits}
    x, y = load[name](return_X_y=True)
    x = MaxAbsScaler().fit_transform(x)
    y = (y - y.mean()) / y.std() if name == "diabetes" else np.where(y % 2 == 1, 1.0, -1.0)
    path = folder / f"{name}.txt"
    dump_svmlight_file(x, y, str(path), zero_based=False)
    return RealRows(spec=f"libsvm:{path}", x=x, y=y)
