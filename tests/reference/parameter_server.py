"""Serial references of the parameter server's methods, written from the papers' equations alone.

    P(w) = 1/n Σ ℓ(x_i·w, y_i) + λ/2 |w|²                                            (3.1)

Every loop goes over samples and coordinates as the papers do; which samples, is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Linear", "cocoa_plus", "dfsdca", "mini_batch_dual_free", "sdca", "svrg"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """Ridge ½(x·w - y)² or logistic log(1 + exp(-y x·w)) on dense rows.

    Attributes:
        x: (n, d).
        y: (n,).
        strength: λ.
        logistic: which of the two.
    """

    x: Array
    y: Array
    strength: float
    logistic: bool = False

    @property
    def n(self) -> int:
        return len(self.y)

    def slope(self, i: int, w: Array) -> float:
        """Return ℓ' of sample i at w."""
        z = float(np.dot(self.x[i], w))
        if self.logistic:
            return float(-self.y[i] / (1 + np.exp(self.y[i] * z)))
        return z - float(self.y[i])

    def gradient(self, i: int, w: Array) -> Array:
        """Return ∇φ_i(w)."""
        return self.slope(i, w) * self.x[i]

    def full_gradient(self, w: Array) -> Array:
        """Return 1/n Σ ∇φ_i(w) + λw."""
        total = np.zeros_like(w)
        for i in range(self.n):
            total += self.gradient(i, w)
        return total / self.n + self.strength * w

    def value(self, w: Array) -> float:
        """Return P(w)."""
        z = self.x @ w
        losses = np.log1p(np.exp(-self.y * z)) if self.logistic else (z - self.y) ** 2 / 2
        return float(losses.mean() + self.strength / 2 * w @ w)

    def solution(self) -> Array:
        """Return ridge's w* by its normal equations."""
        d = self.x.shape[1]
        hessian = self.x.T @ self.x / self.n + self.strength * np.eye(d)
        return np.linalg.solve(hessian, self.x.T @ self.y / self.n)


def svrg(
    problem: Linear, w: Array, eta: float, inner: int, batches: Sequence[Sequence[int]]
) -> Array:
    """SVRG (Johnson and Zhang 2013; HUO alg. 2 with one worker, 2.33 with no delay).

    Args:
        problem: to be minimised.
        w: to begin with.
        eta: step.
        inner: m, steps between two full gradients.
        batches: samples of every inner step.
    """
    w = w.copy()
    for first in range(0, len(batches), inner):
        anchor = w.copy()
        full = problem.full_gradient(anchor)
        for batch in batches[first : first + inner]:
            v = np.zeros_like(w)
            for i in batch:
                at_w = problem.gradient(i, w) + problem.strength * w
                at_anchor = problem.gradient(i, anchor) + problem.strength * anchor
                v += at_w - at_anchor + full
            w = w - eta * v / len(batch)
    return w


def dfsdca(problem: Linear, eta: float, samples: Sequence[int]) -> tuple[Array, Array]:
    """Algorithm 5 of HUO, from α = 0; returns w and α, (n, d)."""
    n, d = problem.x.shape
    w, alpha = np.zeros(d), np.zeros((n, d))
    for i in samples:
        kappa = problem.gradient(i, w) + alpha[i]
        alpha[i] = alpha[i] - eta * problem.strength * n * kappa
        w = w - eta * kappa
    return w, alpha


def mini_batch_dual_free(
    problem: Linear, eta: float, batches: Sequence[Sequence[int]]
) -> tuple[Array, Array]:
    """Algorithms 6 and 7 of HUO with one worker: all samples of a batch at one w, n and not n_k."""
    n, d = problem.x.shape
    w, alpha = np.zeros(d), np.zeros((n, d))
    for batch in batches:
        v = np.zeros(d)
        for i in batch:
            kappa = problem.gradient(i, w) + alpha[i]
            alpha[i] = alpha[i] - eta * problem.strength * n * kappa
            v = v + kappa
        w = w - eta * v
    return w, alpha


def sdca(problem: Linear, samples: Sequence[int]) -> tuple[Array, Array]:
    """Algorithm 4 of HUO for ridge, whose (3.4) has a closed form; returns w and α, (n,)."""
    n, d = problem.x.shape
    w, alpha = np.zeros(d), np.zeros(n)
    for i in samples:
        change = _best_change(problem, i, w, alpha[i], 1.0)
        alpha[i] += change
        w = w + change * problem.x[i] / (problem.strength * n)
    return w, alpha


def cocoa_plus(problem: Linear, rounds: Sequence[Sequence[Sequence[int]]]) -> tuple[Array, Array]:
    """CoCoA+ (Ma et al. 2015), adding (γ = 1), σ' = K, SDCA inside; `rounds`: samples by worker."""
    n, d = problem.x.shape
    w, alpha = np.zeros(d), np.zeros(n)
    for workers in rounds:
        sigma = float(len(workers))
        moves = []
        for samples in workers:
            # The local problem at Δ: its quadratic term, σ'/(2λn²)|Σ Δ_i x_i|², moves u.
            change, u = np.zeros(n), w.copy()
            for i in samples:
                step = _best_change(problem, i, u, alpha[i] + change[i], sigma)
                change[i] += step
                u = u + sigma * step * problem.x[i] / (problem.strength * n)
            moves.append(change)
        for change in moves:
            alpha = alpha + change
            w = w + problem.x.T @ change / (problem.strength * n)
    return w, alpha


def _best_change(problem: Linear, i: int, w: Array, alpha: float, sigma: float) -> float:
    """Maximise -½(α+Δ)² + y(α+Δ) - Δ x·w - σ'Δ²|x|²/(2λn) over Δ: ridge's φ* is ½a² + ya."""
    square = float(np.dot(problem.x[i], problem.x[i]))
    slope = float(problem.y[i]) - alpha - float(np.dot(problem.x[i], w))
    return slope / (1 + sigma * square / (problem.strength * problem.n))
