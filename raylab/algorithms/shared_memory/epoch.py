"""What the threads of AsySVRG in shared memory do at the same time: gradients, and steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Protocol, runtime_checkable

import numpy as np

from raylab.algorithms.server.parts import dense
from raylab.data.augment import Stream, keyed_generator
from raylab.problems.objective import LinearObjective, Objective, Rows, Vector

__all__ = ["SharedEpoch", "draw", "steps_in_python"]

_BINS = 256
"""Of the staleness that is told apart; more counts as the last."""
_LINE = 8
"""int64 of a cache line: no two threads write to one."""


@runtime_checkable
class _Compiled(LinearObjective, Protocol):
    """An objective whose steps run without Python's lock."""

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
    ) -> None: ...


def draw(seed: int, epoch: int, steps: int, batch: int, n: int, dim: int) -> tuple[Rows, Rows]:
    """Return the samples (steps, batch) and the first coordinates (steps,) of an epoch's blocks."""
    generator = keyed_generator(Stream.SAMPLES, seed, epoch)
    return generator.integers(n, size=(steps, batch)), generator.integers(dim, size=steps)


class SharedEpoch:
    """The threads' part of an epoch.

    Args:
        objective: of all rows.
        threads: K.
        block: coordinates that a step writes to.
    """

    def __init__(self, objective: Objective, threads: int, block: int) -> None:
        self._objective = objective
        self._compiled = objective if isinstance(objective, _Compiled) else None
        self._threads = threads
        self._block = block
        self._done = np.zeros((threads, _LINE), dtype=np.int64)
        self._staleness = np.zeros((threads, _BINS), dtype=np.int64)

    def full_gradient(self, pool: Executor, w: Vector) -> tuple[Vector, Vector | None]:
        """Return Σ ∇φ_i(w), and the slopes ℓ'(x_i·w) where the objective's steps need them."""
        n, objective = self._objective.shard.n, self._objective
        cuts = [thread * n // self._threads for thread in range(self._threads + 1)]
        slopes = None if self._compiled is None else np.empty(n)

        def part(lo: int, hi: int) -> Vector:
            rows = np.arange(lo, hi)
            if self._compiled is None or slopes is None:
                return objective.gradients(w, rows)
            slopes[lo:hi] = self._compiled.residuals(w, self._compiled.zero_duals(), rows)
            return dense(self._compiled.combine(rows, slopes[lo:hi]), objective.dim)

        spans = [(lo, hi) for lo, hi in itertools.pairwise(cuts) if hi > lo]
        parts = list(pool.map(lambda span: part(*span), spans))
        return np.sum(parts, axis=0) if len(parts) > 1 else parts[0], slopes

    def steps(
        self,
        pool: Executor,
        w: Vector,
        gradient: Vector,
        slopes: Vector | None,
        eta: float,
        drawn: tuple[Rows, Rows],
    ) -> None:
        """Make the steps of an epoch.

        Args:
            pool: of the threads.
            w: the w~ to begin at, written to.
            gradient: what `full_gradient` has found there.
            slopes: found with it.
            eta: the step.
            drawn: samples and coordinates, see `draw`.
        """
        start = w.copy()
        mean = gradient / self._objective.shard.n + self._objective.strength * start
        rows, blocks = drawn
        self._done[:] = 0
        if self._compiled is None:
            steps: Callable[..., None] = steps_in_python
            first: tuple[Any, ...] = (self._objective, w, start, mean)
        else:
            steps, first = self._compiled.shared_steps, (w, start, slopes, mean)
        futures = [
            pool.submit(
                steps,
                *first,
                eta,
                rows,
                blocks,
                self._block,
                thread,
                self._threads,
                self._done,
                self._staleness[thread],
            )
            for thread in range(self._threads)
        ]
        for future in futures:
            future.result()

    def staleness(self) -> list[int]:
        """Return how many steps have not seen 0, 1, … others since this was asked last."""
        counts = self._staleness.sum(axis=0)
        self._staleness[:] = 0
        most = int(np.flatnonzero(counts)[-1]) if counts.any() else -1
        return [int(each) for each in counts[: most + 1]]


def steps_in_python(
    objective: Objective,
    w: Vector,
    start: Vector,
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
    """Do what `kernels.shared_steps` does, of any objective: gradients and numpy."""
    offsets = np.arange(block)
    for t in range(thread, len(rows), threads):
        before = int(done[:, 0].sum() - done[thread, 0])
        change = (objective.gradients(w, rows[t]) - objective.gradients(start, rows[t])) / len(
            rows[t]
        )
        chosen = (blocks[t] + offsets) % len(w)
        v = change[chosen] + gradient[chosen] + objective.strength * (w - start)[chosen]
        w[chosen] -= eta * v
        others = int(done[:, 0].sum() - done[thread, 0]) - before
        staleness[min(others, len(staleness) - 1)] += 1
        done[thread, 0] += 1
