"""Steps of AsySVRG in shared memory: Theorem 2.3.2's, and the largest that is likely to be stable.

Theorem 2.3.2 has eta = u_0 b / (L n^α) and m = floor(d n^α / (6 u_0 b)), and asks of the delay

    Δ² < min{ d / (2x), (3d - 28xd) / (28x²) },       x = u_0 b                            (2.26)

that is, of x: x < d/(2Δ²), and 28Δ²x² + 28dx - 3d < 0. d is the number of blocks. α is 2/3, as in
Reddi et al. 2016, who have no delay.
"""

from __future__ import annotations

import math

__all__ = ["EXPONENT", "auto_eta", "inner_steps", "theory_eta"]

EXPONENT = 2 / 3
"""α."""
_BELOW = 0.99
"""Of a bound that must not be reached."""
_NOISE_MARGIN = 4.0


def _largest(blocks: float, delta: int) -> float:
    """Return x = u_0 b just below the bound of (2.26)."""
    if delta == 0:
        return _BELOW * 3 / 28
    d, square = blocks, float(delta * delta)
    root = (math.sqrt((28 * d) ** 2 + 336 * square * d) - 28 * d) / (56 * square)
    return _BELOW * min(root, d / (2 * square))


def theory_eta(*, smoothness: float, n: int, blocks: float, delta: int) -> float:
    """Return the largest step of Theorem 2.3.2.

    Args:
        smoothness: L of every f_i, the regulariser's λ included.
        n: samples.
        blocks: d/c; the theorem's d.
        delta: Δ, the largest delay; with K threads K - 1 steps are under way besides one's own.

    >>> round(theory_eta(smoothness=1.0, n=1000, blocks=1.0, delta=0), 6)
    0.001061
    """
    return _largest(blocks, delta) / (smoothness * math.pow(n, EXPONENT))


def inner_steps(*, n: int, blocks: float, delta: int) -> int:
    """Return m of Theorem 2.3.2 for the step of `theory_eta`.

    >>> inner_steps(n=1000, blocks=1.0, delta=0)
    157
    """
    return max(1, math.floor(blocks * math.pow(n, EXPONENT) / (6 * _largest(blocks, delta))))


def auto_eta(
    *, smoothness: float, mean_curvature: float, strength: float, batch: int, late: float
) -> float:
    """Return a step for which the mean dynamics and the noise of the samples are both stable:
    eta ((c + λ)(1 + τ) + 4L/b) = 1.

    Args:
        smoothness: L.
        mean_curvature: c, largest eigenvalue of the mean of the Hessians of φ_i; L bounds it.
        strength: λ.
        batch: b.
        late: τ, updates of one coordinate that a step does not see: (K - 1)·c/d.
    """
    mean = min(mean_curvature, smoothness) + strength
    return 1 / (mean * (1 + late) + _NOISE_MARGIN * smoothness / batch)
