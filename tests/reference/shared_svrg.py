"""SVRG as HUO's algorithm 1 has it for one thread, written from the paper: every v is a whole
vector, every ∇f_i is computed anew, and then one block of coordinates is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Gradient = Callable[[Vector, int], Vector]
"""∇f_i(w), the regulariser included."""


def linear_gradient(loss: str, x: Vector, y: Vector, strength: float) -> Gradient:
    """∇f_i of P(w) = 1/n Σ ℓ(x_i·w, y_i) + λ/2‖w‖², for dense x; the hinge has γ = 1."""

    def slope(z: float, label: float) -> float:
        if loss == "ridge":
            return z - label
        if loss == "logistic":
            return -label / (1 + np.exp(label * z))
        margin = label * z
        return 0.0 if margin >= 1 else -label if margin <= 0 else -label * (1 - margin)

    return lambda w, i: x[i] * slope(float(x[i] @ w), float(y[i])) + strength * w


def svrg(
    gradient: Gradient,
    w: Vector,
    n: int,
    *,
    eta: float,
    epochs: Sequence[tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]],
) -> Vector:
    """w after epochs, each given by its mini-batches I_t and its sets of coordinates."""
    w = w.copy()
    for batches, blocks in epochs:
        snapshot = w.copy()
        full = sum(gradient(snapshot, i) for i in range(n)) / n
        for batch, block in zip(batches, blocks, strict=True):
            v = sum(gradient(w, i) - gradient(snapshot, i) + full for i in batch) / len(batch)
            for j in block:
                w[j] -= eta * v[j]
    return w
