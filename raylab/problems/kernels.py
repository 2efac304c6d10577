"""The inner loops of linear models, compiled: φ_i(w) = ℓ(x_i·w, y_i), α_i = x_i·a_i.

Rows come as (indptr, indices, values) of a `RowBlock`; where `indices` is empty and the rows are
not, they are dense. All that calls each other stands in this file: what numba keeps of a function
is thrown away when its own file changes, and not when another does.

    loss        ℓ(z, y)                                   ℓ*(-a, y), b = y·a
    ridge       ½(z - y)²                                 ½a² - y·a
    logistic    log(1 + exp(-y·z))                        b log b + (1 - b) log(1 - b), b in [0, 1]
    hinge       0, ½(1 - y·z)²/γ or 1 - y·z - γ/2         ½γb² - b, b in [0, 1]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from raylab.problems.prefetch import prefetch

__all__ = [
    "HINGE",
    "LOGISTIC",
    "RIDGE",
    "add_rows",
    "add_rows_sparse",
    "compiled",
    "conjugate_sum",
    "loss_sum",
    "odd_row",
    "pca_residuals",
    "products",
    "residuals",
    "sequential_pass",
    "shared_steps",
    "slopes",
    "square_norms",
]

RIDGE, LOGISTIC, HINGE = 0, 1, 2
_AHEAD = 8  # rows between the one that is computed on and the one that is asked for
_LINE = 64  # bytes that come from memory at once
_LONGEST = 128  # values of a row that are asked for
_TOLERANCE = 1e-12  # by which rounding may carry a dual variable out of [0, 1]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function with numba: without the GIL, and kept for the next process.

    Numba keeps it beside the file, or in the user's cache where that cannot be written to; where
    neither can, it is compiled by each process.
    """
    options: Any = {"nogil": True, "error_model": "numpy"}
    try:
        return cast("F", njit(cache=True, **options)(function))
    except RuntimeError:  # "no locator available"
        return cast("F", njit(**options)(function))


@compiled
def _product(indptr: Any, indices: Any, values: Any, i: int, w: Any) -> float:
    """Return x_i·w."""
    total = 0.0
    if len(indices) == 0:
        for j in range(indptr[i], indptr[i + 1]):
            total += values[j] * w[j - indptr[i]]
    else:
        for j in range(indptr[i], indptr[i + 1]):
            total += values[j] * w[indices[j]]
    return total


@compiled
def _add(indptr: Any, indices: Any, values: Any, i: int, factor: float, out: Any) -> None:
    """Add factor·x_i to `out`."""
    if len(indices) == 0:
        for j in range(indptr[i], indptr[i + 1]):
            out[j - indptr[i]] += factor * values[j]
    else:
        for j in range(indptr[i], indptr[i + 1]):
            out[indices[j]] += factor * values[j]


@compiled
def _check(i: int, rows: int) -> None:
    if i < 0 or i >= rows:  # an array of compiled code has no such check
        raise IndexError("row numbers must be those of the shard, counted from 0")


@compiled
def _check_rows(rows: Any, indptr: Any) -> None:
    """Check all of them, before anything is written."""
    for k in range(len(rows)):
        _check(rows[k], len(indptr) - 1)


@compiled
def _ahead(indptr: Any, indices: Any, values: Any, rows: Any, k: int) -> None:
    """Ask for a row that a loop over `rows` comes to soon, and where a later one lies."""
    if k + 2 * _AHEAD < len(rows):
        prefetch(indptr, rows[k + 2 * _AHEAD])
    if k + _AHEAD < len(rows):
        i = rows[k + _AHEAD]
        start = indptr[i]
        end = min(indptr[i + 1], start + _LONGEST)  # what is longer, the processor foresees
        for j in range(start, end, _LINE // values.itemsize):
            prefetch(values, j)
        if len(indices) > 0:
            for j in range(start, end, _LINE // 4):
                prefetch(indices, j)


@compiled
def products(indptr: Any, indices: Any, values: Any, w: Any, rows: Any, out: Any) -> None:
    """Set out[k] to x_i·w for row i = rows[k]."""
    _check_rows(rows, indptr)
    for k in range(len(rows)):
        _ahead(indptr, indices, values, rows, k)
        out[k] = _product(indptr, indices, values, rows[k], w)


@compiled
def add_rows(indptr: Any, indices: Any, values: Any, factors: Any, rows: Any, out: Any) -> None:
    """Add Σ_k factors[k]·x_i to `out`, for row i = rows[k]."""
    _check_rows(rows, indptr)
    for k in range(len(rows)):
        _ahead(indptr, indices, values, rows, k)
        _add(indptr, indices, values, rows[k], factors[k], out)


@compiled
def add_rows_sparse(
    indptr: Any, indices: Any, values: Any, factors: Any, rows: Any, out: Any, seen: Any
) -> tuple[Any, Any]:
    """As `add_rows`, of sparse rows, to zeros: returns coordinates that are not zero, and values.

    Where these would be as many numbers as the vector has, returned are none, and the vector. `out`
    and `seen`, a byte for each coordinate and padded to whole words, are zero before and after.
    """
    _check_rows(rows, indptr)
    count = 0
    for k in range(len(rows)):
        _ahead(indptr, indices, values, rows, k)
        for j in range(indptr[rows[k]], indptr[rows[k] + 1]):
            column = indices[j]
            out[column] += factors[k] * values[j]
            count += 1 - seen[column]
            seen[column] = 1
    if 2 * count >= len(out):
        total = out.copy()
        out[:] = 0.0
        seen[:] = 0
        return np.empty(0, dtype=np.int64), total
    columns, sums = np.empty(count, dtype=np.int64), np.empty(count)
    words = seen.view(np.uint64)
    place = 0
    for word in range(len(words)):  # faster than to sort the columns in the order they came
        if words[word] != 0:
            for column in range(8 * word, 8 * word + 8):
                if seen[column] != 0:
                    columns[place], sums[place] = column, out[column]
                    out[column] = 0.0
                    place += 1
            words[word] = 0
    return columns, sums


@compiled
def square_norms(indptr: Any, values: Any, out: Any) -> None:
    """Set out[i] to ‖x_i‖²."""
    for i in range(len(indptr) - 1):
        total = 0.0
        for j in range(indptr[i], indptr[i + 1]):
            value = float(values[j])
            total += value * value
        out[i] = total


@compiled
def odd_row(indptr: Any, indices: Any, dim: int, values: int) -> int:
    """Return the first row whose columns are not in [0, dim) or not different, or -1."""
    seen = np.full(dim, -1)
    for i in range(len(indptr) - 1):
        if indptr[i] < 0 or indptr[i] > indptr[i + 1] or indptr[i + 1] > values:
            return i
        for j in range(indptr[i], indptr[i + 1]):
            column = indices[j]
            if column < 0 or column >= dim or seen[column] == i:
                return i
            seen[column] = i
    return -1


@compiled
def _logistic(t: float) -> float:
    """Return 1/(1 + exp(-t)), without overflow."""
    if t >= 0.0:
        return 1.0 / (1.0 + math.exp(-t))
    e = math.exp(t)
    return e / (1.0 + e)


@compiled
def _loss(loss: int, gamma: float, z: float, y: float) -> float:
    if loss == RIDGE:
        return 0.5 * (z - y) * (z - y)
    margin = y * z
    if loss == LOGISTIC:
        return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
    if margin >= 1.0:
        return 0.0
    if margin <= 1.0 - gamma:
        return 1.0 - margin - 0.5 * gamma
    return 0.5 * (1.0 - margin) * (1.0 - margin) / gamma


@compiled
def _slope(loss: int, gamma: float, z: float, y: float) -> float:
    """Return dℓ/dz."""
    if loss == RIDGE:
        return z - y
    if loss == LOGISTIC:
        return -y * _logistic(-y * z)
    return -y * min(1.0, max(0.0, (1.0 - y * z) / gamma))


@compiled
def _conjugate(loss: int, gamma: float, a: float, y: float) -> float:
    """Return ℓ*(-a); infinity outside its domain, but for what rounding does."""
    if loss == RIDGE:
        return 0.5 * a * a - y * a
    b = y * a
    if b < -_TOLERANCE or b > 1.0 + _TOLERANCE:
        return math.inf
    b = min(1.0, max(0.0, b))
    if loss == HINGE:
        return 0.5 * gamma * b * b - b
    total = 0.0
    if b > 0.0:
        total += b * math.log(b)
    if b < 1.0:
        total += (1.0 - b) * math.log1p(-b)
    return total


@compiled
def loss_sum(loss: int, gamma: float, z: Any, y: Any) -> float:
    """Return Σ ℓ(z_i, y_i)."""
    total = 0.0
    for i in range(len(z)):
        total += _loss(loss, gamma, z[i], y[i])
    return total


@compiled
def slopes(loss: int, gamma: float, z: Any, y: Any, rows: Any, out: Any) -> None:
    """Set out[k] to ℓ'(z_k, y_i) for row i = rows[k]."""
    for k in range(len(rows)):
        out[k] = _slope(loss, gamma, z[k], y[rows[k]])


@compiled
def conjugate_sum(loss: int, gamma: float, duals: Any, y: Any) -> float:
    """Return Σ ℓ*(-a_i, y_i)."""
    total = 0.0
    for i in range(len(duals)):
        total += _conjugate(loss, gamma, duals[i], y[i])
    return total


@compiled
def residuals(
    indptr: Any,
    indices: Any,
    values: Any,
    y: Any,
    loss: int,
    gamma: float,
    w: Any,
    duals: Any,
    rows: Any,
    out: Any,
) -> None:
    """Set out[k] to ℓ'(x_i·w, y_i) + a_i for row i = rows[k]."""
    _check_rows(rows, indptr)
    for k in range(len(rows)):
        _ahead(indptr, indices, values, rows, k)
        if k + _AHEAD < len(rows):
            prefetch(y, rows[k + _AHEAD])
            prefetch(duals, rows[k + _AHEAD])
        i = rows[k]
        z = _product(indptr, indices, values, i, w)
        out[k] = _slope(loss, gamma, z, y[i]) + duals[i]


@compiled
def _best_logistic(b: float, margin: float, q: float) -> float:
    """Return the b' that maximises -ℓ*(-y·b') - margin·(b' - b) - ½q(b' - b)², for logistic loss.

    In t = log(b'/(1 - b')) the derivative is -f(t), f(t) = t + margin + q(1/(1 + exp(-t)) - b),
    with f' in [1, 1 + q/4]: Newton's method, and halving of the bracket where a step leaves it, or
    is not half as long as the one before. Without the latter, a large q has Newton's method jump
    between the steep part of f and its tail for ever.
    """
    low, high = -margin - q * (1.0 - b), -margin + q * b
    t = -margin
    if 0.0 < b < 1.0:
        t = min(high, max(low, math.log(b) - math.log1p(-b)))  # where the last pass ended
    longest = math.inf
    for _ in range(200):
        p = _logistic(t)
        f = t + margin + q * (p - b)
        if f > 0.0:
            high = t
        else:
            low = t
        new = t - f / (1.0 + q * p * (1.0 - p))
        if new < low or new > high or abs(new - t) > longest:
            new = 0.5 * (low + high)
        longest = 0.5 * abs(new - t)
        done = abs(new - t) <= 1e-14 * (1.0 + abs(new))
        t = new
        if done:
            break
    return _logistic(t)


@compiled
def _ascent(loss: int, gamma: float, a: float, y: float, z: float, q: float) -> float:
    """Return the Δ that maximises -ℓ*(-(a + Δ)) - zΔ - ½qΔ² (3.4)."""
    if loss == RIDGE:
        return (y - a - z) / (1.0 + q)
    b = y * a
    if loss == LOGISTIC:
        return y * (_best_logistic(b, y * z, q) - b)
    return y * (min(1.0, max(0.0, b + (1.0 - y * z - gamma * b) / (gamma + q))) - b)


@compiled
def sequential_pass(
    indptr: Any,
    indices: Any,
    values: Any,
    y: Any,
    loss: int,
    gamma: float,
    u: Any,
    duals: Any,
    rows: Any,
    norms: Any,
    scale: float,
    step: float,
    change: Any,
    seen: Any,
    touched: Any,
) -> int:
    """Change the dual of one row after the other, and u with it: u += scale·Δ·x_i.

    `norms` are ‖x_i‖² of every row. `scale` is 1/(λn) in SDCA and dfSDCA, σ'/(λn) in CoCoA+.
    `step` is ηλn of dfSDCA, a_i -= step·κ_i; where it is 0, a_i maximises (3.4), as SDCA does.
    `change` and `seen`, of all rows, are zero before; afterwards they hold the sum of every row's
    Δ, and mark the rows that were changed. `touched` receives the numbers of those rows; returned
    is how many they are.
    """
    _check_rows(rows, indptr)
    count = 0
    for k in range(len(rows)):
        _ahead(indptr, indices, values, rows, k)
        if k + _AHEAD < len(rows):
            soon = rows[k + _AHEAD]
            prefetch(y, soon)
            prefetch(duals, soon)
            prefetch(norms, soon)
            prefetch(change, soon)
            prefetch(seen, soon)
        i = rows[k]
        z = _product(indptr, indices, values, i, u)
        a = duals[i] + change[i]
        if step > 0.0:
            delta = -step * (_slope(loss, gamma, z, y[i]) + a)
        else:
            delta = _ascent(loss, gamma, a, y[i], z, scale * norms[i])
        change[i] += delta
        _add(indptr, indices, values, i, scale * delta, u)
        if seen[i] == 0:
            seen[i] = 1
            touched[count] = i
            count += 1
    return count


@compiled
def pca_residuals(
    values: Any, shift: float, b: Any, w: Any, duals: Any, rows: Any, out: Any
) -> None:
    """Set out[k] to shift·w - x_i·(x_i·w) - b + α_i for row i = rows[k], of dense rows."""
    dim = len(w)
    for k in range(len(rows)):
        i = rows[k]
        _check(i, len(duals))
        z = 0.0
        for j in range(dim):
            z += values[i * dim + j] * w[j]
        for j in range(dim):
            out[k, j] = shift * w[j] - z * values[i * dim + j] - b[j] + duals[i, j]


@compiled
def shared_steps(
    indptr: Any,
    indices: Any,
    values: Any,
    y: Any,
    loss: int,
    gamma: float,
    w: Any,
    start: Any,
    start_slopes: Any,
    gradient: Any,
    strength: float,
    eta: float,
    rows: Any,
    blocks: Any,
    block: int,
    thread: int,
    threads: int,
    done: Any,
    staleness: Any,
) -> None:
    """Make one thread's share of the steps of an epoch of AsySVRG on a w that others change too.

    Step t reads w without a lock, and then only changes the `block` coordinates from blocks[t] on,
    cyclically: w_j -= eta·v_j, where v is the mean over the samples rows[t] of
    x_i·(ℓ'(x_i·w) - start_slopes[i]), plus strength·(w - start) + gradient (2.5). `thread` makes
    the steps thread, thread + threads, ….

    done[k, 0] are the steps that thread k has made; only that thread writes to it. staleness[s]
    counts the steps during which the others completed s steps; its last place also all more.
    """
    dim = len(w)
    steps, batch = rows.shape
    factors = np.empty(batch)
    v = np.empty(block)
    for t in range(thread, steps, threads):
        others = 0
        for k in range(threads):
            if k != thread:
                others += done[k, 0]
        for j in range(batch):
            i = rows[t, j]
            _check(i, len(indptr) - 1)
            z = _product(indptr, indices, values, i, w)
            factors[j] = (_slope(loss, gamma, z, y[i]) - start_slopes[i]) / batch
        low = blocks[t]
        _check(low, dim)
        # Two runs of neighbours: from `low` on, and what remains from 0 on.
        first = min(block, dim - low)
        for j in range(first):
            v[j] = gradient[low + j] + strength * (w[low + j] - start[low + j])
        for j in range(first, block):
            v[j] = gradient[j - first] + strength * (w[j - first] - start[j - first])
        for b in range(batch):
            begin, end = indptr[rows[t, b]], indptr[rows[t, b] + 1]
            if len(indices) == 0:
                for j in range(first):
                    v[j] += factors[b] * values[begin + low + j]
                for j in range(first, block):
                    v[j] += factors[b] * values[begin + j - first]
            else:
                for j in range(begin, end):
                    place = indices[j] - low
                    if place < 0:
                        place += dim
                    if place < block:
                        v[place] += factors[b] * values[j]
        for j in range(first):
            w[low + j] -= eta * v[j]
        for j in range(first, block):
            w[j - first] -= eta * v[j]
        for k in range(threads):
            if k != thread:
                others -= done[k, 0]
        staleness[min(-others, len(staleness) - 1)] += 1
        done[thread, 0] += 1
