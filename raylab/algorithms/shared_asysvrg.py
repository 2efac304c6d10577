"""AsySVRG in shared memory: threads of one process, one w, no locks (HUO algorithm 1).

    epoch s    w~ = w,  ∇f(w~) = 1/n Σ ∇f_i(w~)           all threads, each a part of the rows
    step t     v = 1/b Σ_{i in I_t} (∇f_i(ŵ) - ∇f_i(w~)) + ∇f(w~)                            (2.5)
               w_j <- w_j - eta·v_j  for j in a block of coordinates, no other               (2.4)

f_i = φ_i + λ/2 ‖·‖², and ŵ is what a thread sees of w while others change it. I_t and the block
are drawn by (seed, s, t), and thread k of K makes the steps k, k + K, …: any number of threads
makes the same steps, and one thread is serial SVRG.

The block is `coordinates` consecutive ones, cyclically, from a uniform beginning. What the theory
uses of k_t is that each coordinate is as probable as any other; neighbours are read and written at
the memory's pace. With d the number of coordinates and c those of a block, the theorems hold with
d/c in the place of their d.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from raylab.algorithms.shared_steps import EXPONENT, auto_eta, inner_steps, theory_eta
from raylab.data.augment import Stream, keyed_generator
from raylab.errors import ConfigError, DataError, NonFiniteLossError
from raylab.problems.objective import LinearObjective, Objective, Rows, Vector

__all__ = ["SharedEnds", "SharedMemorySolver", "draw"]

_BINS = 256
"""Of the staleness that is told apart; more counts as the last."""
_LINE = 8
"""int64 of a cache line: no two threads write to one."""
_RISE = 1e-9
"""Relative rise of P that rounding does not explain."""


class SharedEnds(Protocol):
    """When a run ends, as `actors.server.Ends` has it; at whichever comes first."""

    @property
    def samples(self) -> float | None:
        """Looked at, in all."""
        ...

    @property
    def messages(self) -> int | None:
        """Inner steps."""
        ...

    @property
    def tolerance(self) -> float:
        """Largest `figure` that is good enough; 0: none is."""
        ...

    @property
    def figure(self) -> str:
        """Of the certificate."""
        ...


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


class SharedMemorySolver:
    """Solves a problem whose rows are all in this process.

    Args:
        objective: of all rows.
        threads: K.
        eta: the step; "theory": of Theorem 2.3.2; "auto": the largest that is likely to be stable,
            halved whenever a certificate has risen, after going back to the last good w.
        inner: m, steps of an epoch; None: two passes, and with eta="theory" the theorem's.
        batch: b, samples of a step, with replacement.
        coordinates: of a block; None: 1,000, or all if there are fewer.
        seed: of the draws.
        w: to begin with; None: the objective's.

    Raises:
        ConfigError: a number is out of its range.
        DataError: the objective has a part of the rows only.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        threads: int = 1,
        eta: float | Literal["auto", "theory"] = "auto",
        inner: int | None = None,
        batch: int = 10,
        coordinates: int | None = None,
        seed: int = 0,
        w: Vector | None = None,
    ) -> None:
        dim, n = objective.dim, objective.shard.n
        if objective.shard.rows != n:
            raise DataError(
                f"threads share all rows, but the objective has {objective.shard.rows} of {n}: "
                f"build it on one shard"
            )
        block = min(1000, dim) if coordinates is None else coordinates
        numbers = {"threads": threads, "batch": batch, "inner": 1 if inner is None else inner}
        for name, value in numbers.items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, but got {value}")
        if not 1 <= block <= dim:
            raise ConfigError(f"coordinates must be 1 to {dim}, those of w, but got {block}")
        if not isinstance(eta, str) and not (math.isfinite(eta) and eta > 0):
            raise ConfigError(f"eta must be above 0, but got {eta}")
        self.objective = objective
        self.threads = threads
        self.batch = batch
        self.block = block
        self.seed = seed
        self.w: Vector = np.array(objective.initial() if w is None else w, dtype=np.float64)
        self.eta = self._first_eta(eta)
        self.inner = self._inner(eta) if inner is None else inner
        self._guarded = eta == "auto"
        self._compiled = objective if isinstance(objective, _Compiled) else None
        self._epoch = 0
        self._steps = 0
        self._samples = 0
        self._seconds = 0.0
        self._good: tuple[Vector, float] | None = None
        self._done = np.zeros((threads, _LINE), dtype=np.int64)
        self._staleness = np.zeros((threads, _BINS), dtype=np.int64)

    # ------------------------------------------------------------------------- the run

    def run(self, ends: SharedEnds) -> Iterator[dict[str, Any]]:
        """Yield one row before the first epoch and one after each, the last with `ended_by`.

        Raises:
            NonFiniteLossError: P is not finite, with an eta that was given.
        """
        began = time.perf_counter() - self._seconds
        with ThreadPoolExecutor(self.threads, thread_name_prefix="asysvrg") as pool:
            while True:
                gradient, slopes = self._full_gradient(pool)
                with np.errstate(all="ignore"):  # what is not finite is judged below
                    row = self._certificate(gradient)
                self._seconds = time.perf_counter() - began
                row |= self._counts()
                reason = self._judge(row)
                if reason is not None:
                    row["rewound"] = reason
                    yield row
                    continue
                ended_by = self._ended_by(ends, row)
                if ended_by:
                    yield row | {"ended_by": ended_by}
                    return
                yield row
                self._inner_epoch(pool, gradient, slopes)

    def save(self) -> dict[str, Any]:
        """Return where the run stands, between two rows; nobody will write to it."""
        good = None if self._good is None else {"w": self._good[0].copy(), "primal": self._good[1]}
        return {
            "w": self.w.copy(),
            "eta": self.eta,
            "epoch": self._epoch,
            "steps": self._steps,
            "samples": self._samples,
            "seconds": self._seconds,
            "good": good,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        self.w = np.array(saved["w"], dtype=np.float64)
        self.eta = float(saved["eta"])
        self._epoch, self._steps = int(saved["epoch"]), int(saved["steps"])
        self._samples, self._seconds = int(saved["samples"]), float(saved["seconds"])
        good = saved["good"]
        self._good = None if good is None else (np.array(good["w"]), float(good["primal"]))

    def notes(self) -> list[str]:
        """Return what of the settings the theorem does not cover."""
        most = self._theory()
        if self._guarded or self.eta <= most * (1 + 1e-12):
            return []
        return [
            f"eta={self.eta:.3g} is beyond the bound of Theorem 2.3.2 with alpha={EXPONENT:.3g}, "
            f"which is {most:.3g} for {self.threads} threads"
        ]

    # ------------------------------------------------------------------------- an epoch

    def _full_gradient(self, pool: ThreadPoolExecutor) -> tuple[Vector, Vector | None]:
        """Return Σ ∇φ_i(w), and the slopes ℓ'(x_i·w) where the objective's steps need them."""
        n, objective = self.objective.shard.n, self.objective
        cuts = [thread * n // self.threads for thread in range(self.threads + 1)]
        slopes = None if self._compiled is None else np.empty(n)

        def part(lo: int, hi: int) -> Vector:
            rows = np.arange(lo, hi)
            if self._compiled is None or slopes is None:
                return objective.gradients(self.w, rows)
            slopes[lo:hi] = self._compiled.residuals(self.w, self._compiled.zero_duals(), rows)
            total = self._compiled.combine(rows, slopes[lo:hi])
            if isinstance(total, tuple):
                vector = np.zeros(objective.dim)
                vector[total[0]] = total[1]
                return vector
            return total

        spans = [(lo, hi) for lo, hi in itertools.pairwise(cuts) if hi > lo]
        parts = list(pool.map(lambda span: part(*span), spans))
        return np.sum(parts, axis=0) if len(parts) > 1 else parts[0], slopes

    def _inner_epoch(
        self, pool: ThreadPoolExecutor, gradient: Vector, slopes: Vector | None
    ) -> None:
        n, start = self.objective.shard.n, self.w.copy()
        mean = gradient / n + self.objective.strength * start
        rows, blocks = draw(self.seed, self._epoch, self.inner, self.batch, n, len(start))
        self._done[:] = 0
        steps: Callable[..., None] = self._steps_in_python
        extra: tuple[Any, ...] = (mean,)
        if self._compiled is not None:
            steps, extra = self._compiled.shared_steps, (slopes, mean)
        futures = [
            pool.submit(
                steps,
                self.w,
                start,
                *extra,
                self.eta,
                rows,
                blocks,
                self.block,
                thread,
                self.threads,
                self._done,
                self._staleness[thread],
            )
            for thread in range(self.threads)
        ]
        for future in futures:
            future.result()
        self._epoch += 1
        self._steps += self.inner
        # A full gradient counts when steps are made with it: the last one is a certificate alone.
        self._samples += n + self.inner * self.batch

    def _steps_in_python(
        self,
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
        objective = self.objective
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

    # ------------------------------------------------------------------------- between epochs

    def _certificate(self, gradient: Vector) -> dict[str, Any]:
        objective, w = self.objective, self.w
        n, strength = objective.shard.n, objective.strength
        losses = objective.losses(w)
        primal = losses / n + strength / 2 * float(w @ w)
        norm = float(np.linalg.norm(gradient / n + strength * w))
        found = {"loss": losses / n, "primal": primal, "gradient_norm": norm}
        if objective.convex and strength > 0:
            # P - D at α_i = -∇φ_i(w), where Fenchel and Young's inequality is an equality.
            gap = norm**2 / (2 * strength)
            found |= {"dual": primal - gap, "duality_gap": gap}
        figures = objective.figures(w)
        if "correct" in figures:
            found["accuracy"] = figures["correct"] / n
        return found

    def _counts(self) -> dict[str, Any]:
        counts = self._staleness.sum(axis=0)
        self._staleness[:] = 0
        most = int(np.flatnonzero(counts)[-1]) if counts.any() else -1
        total = int(counts.sum())
        n = self.objective.shard.n
        return {
            "epoch": self._samples / n,
            "step": self._steps,
            "messages": self._steps,
            "bytes": 0,
            "time_s": self._seconds,
            "samples_seen": self._samples,
            "samples_per_s": self._samples / self._seconds if self._seconds > 0 else 0.0,
            "staleness_mean": float(counts @ np.arange(_BINS)) / total if total else 0.0,
            "staleness_max": max(most, 0),
            "staleness_counts": [int(each) for each in counts[: most + 1]],
            "refused": 0,
            "eta": self.eta,
        }

    def _judge(self, row: Mapping[str, Any]) -> str | None:
        """Remember a good w, or go back to the last one and halve the step."""
        primal = float(row["primal"])
        if self._good is None or not self._guarded:
            if not math.isfinite(primal):
                raise NonFiniteLossError(
                    f"P(w) must be finite, but is {primal} after {self._epoch} epochs with "
                    f'eta={self.eta:g}: give a smaller eta, or "auto"'
                )
        elif not primal <= self._good[1] + _RISE * max(1.0, abs(self._good[1])):
            self.w[:] = self._good[0]
            self.eta /= 2
            return f"P rose from {self._good[1]:.6g} to {primal:.6g}"
        self._good = (self.w.copy(), primal)
        return None

    def _ended_by(self, ends: SharedEnds, row: Mapping[str, Any]) -> str:
        value = row.get(ends.figure)
        if value is not None and ends.tolerance > 0 and value <= ends.tolerance:
            return "tolerance"
        if ends.samples is not None and self._samples >= ends.samples:
            return "epochs"
        if ends.messages is not None and self._steps >= ends.messages:
            return "messages"
        return ""

    # ------------------------------------------------------------------------- the step

    def _first_eta(self, eta: float | Literal["auto", "theory"]) -> float:
        if not isinstance(eta, str):
            return float(eta)
        if eta == "auto":
            objective = self.objective
            return auto_eta(
                smoothness=objective.smoothness,
                mean_curvature=objective.curvature() / objective.shard.n,
                strength=objective.strength,
                batch=self.batch,
                late=(self.threads - 1) * self.block / objective.dim,
            )
        if eta == "theory":
            return self._theory()
        raise ConfigError(f'eta must be a number, "auto" or "theory", not {eta!r}')

    def _theory(self) -> float:
        objective = self.objective
        return theory_eta(
            smoothness=objective.smoothness + objective.strength,
            n=objective.shard.n,
            blocks=objective.dim / self.block,
            delta=self.threads - 1,
        )

    def _inner(self, eta: float | str) -> int:
        objective = self.objective
        n = objective.shard.n
        if eta == "theory":
            return inner_steps(n=n, blocks=objective.dim / self.block, delta=self.threads - 1)
        return max(1, 2 * n // self.batch)
