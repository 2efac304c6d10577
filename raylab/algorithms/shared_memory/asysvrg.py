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

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from raylab.algorithms.server.parts import as_tensor, as_vector
from raylab.algorithms.shared_memory.epoch import SharedEpoch, draw
from raylab.algorithms.shared_memory.settings import SharedSettings
from raylab.errors import DataError, NonFiniteLossError
from raylab.problems.objective import Objective, Vector

__all__ = ["SharedEnds", "SharedMemorySolver", "figure"]

_RISE = 1e-9
"""Relative rise of P that rounding does not explain."""


class SharedEnds(Protocol):
    """When a run ends, as `actors.server.ends.Ends` has it; at whichever comes first."""

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


def figure(objective: Objective) -> str:
    """Return which figure of the certificates says how good w is."""
    return "duality_gap" if objective.convex and objective.strength > 0 else "gradient_norm"


class SharedMemorySolver:
    """Solves a problem whose rows are all in this process.

    Args:
        objective: of all rows.
        settings: of the threads.
        w: to begin with; None: the objective's.

    Raises:
        ConfigError: a number does not go with the objective.
        DataError: the objective has a part of the rows only.
    """

    def __init__(
        self, objective: Objective, settings: SharedSettings, w: Vector | None = None
    ) -> None:
        n = objective.shard.n
        if objective.shard.rows != n:
            raise DataError(
                f"threads share all rows, but the objective has {objective.shard.rows} of {n}: "
                f"build it on one shard"
            )
        self.objective = objective
        self.settings = settings
        self.w: Vector = np.array(objective.initial() if w is None else w, dtype=np.float64)
        self.eta = settings.first_eta(objective)
        self.inner = settings.inner_of(objective)
        self.steps = 0
        """Made so far."""
        self._epochs = SharedEpoch(objective, settings.threads, settings.block(objective.dim))
        self._guarded = settings.eta == "auto"
        self._epoch = 0
        self._samples = 0
        self._seconds = 0.0
        self._good: tuple[Vector, float] | None = None

    # ------------------------------------------------------------------------- the run

    def run(self, ends: SharedEnds) -> Iterator[dict[str, Any]]:
        """Yield one row before the first epoch and one after each, the last with `ended_by`.

        Raises:
            NonFiniteLossError: P is not finite, with an eta that was given.
        """
        began = time.perf_counter() - self._seconds
        with ThreadPoolExecutor(self.settings.threads, thread_name_prefix="asysvrg") as pool:
            while True:
                gradient, slopes = self._epochs.full_gradient(pool, self.w)
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
                self._inner_epoch(pool, gradient, slopes, ends)

    def save(self) -> dict[str, Any]:
        """Return where the run stands, between two rows; nobody will write to it."""
        good = None
        if self._good is not None:
            good = {"w": as_tensor(self._good[0].copy()), "primal": self._good[1]}
        return {
            "w": as_tensor(self.w.copy()),
            "eta": self.eta,
            "epoch": self._epoch,
            "steps": self.steps,
            "samples": self._samples,
            "seconds": self._seconds,
            "good": good,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        self.w = as_vector(saved["w"]).copy()
        self.eta = float(saved["eta"])
        self._epoch, self.steps = int(saved["epoch"]), int(saved["steps"])
        self._samples, self._seconds = int(saved["samples"]), float(saved["seconds"])
        good = saved["good"]
        self._good = None if good is None else (as_vector(good["w"]).copy(), float(good["primal"]))

    # ------------------------------------------------------------------------- inside

    def _inner_epoch(
        self,
        pool: ThreadPoolExecutor,
        gradient: Vector,
        slopes: Vector | None,
        ends: SharedEnds,
    ) -> None:
        n, batch = self.objective.shard.n, self.settings.batch
        steps = min(self.inner, self._steps_left(ends))
        drawn = draw(self.settings.seed, self._epoch, steps, batch, n, len(self.w))
        self._epochs.steps(pool, self.w, gradient, slopes, self.eta, drawn)
        self._epoch += 1
        self.steps += steps
        # A full gradient counts when steps are made with it: the last one is a certificate alone.
        self._samples += n + steps * batch

    def _steps_left(self, ends: SharedEnds) -> int:
        """Return after how many steps the run is at an end; one at least."""
        left = math.inf
        if ends.messages is not None:
            left = ends.messages - self.steps
        if ends.samples is not None:
            rest = ends.samples - self._samples - self.objective.shard.n
            left = min(left, math.ceil(rest / self.settings.batch))
        return int(max(1, min(left, self.inner)))

    def _certificate(self, gradient: Vector) -> dict[str, Any]:
        objective, w = self.objective, self.w
        n, strength = objective.shard.n, objective.strength
        losses = objective.losses(w)
        primal = losses / n + strength / 2 * float(w @ w)
        norm = float(np.linalg.norm(gradient / n + strength * w))
        found = {"loss": losses / n, "primal": primal, "gradient_norm": norm}
        if figure(objective) == "duality_gap":
            # P - D at α_i = -∇φ_i(w), where Fenchel and Young's inequality is an equality.
            gap = norm**2 / (2 * strength)
            found |= {"dual": primal - gap, "duality_gap": gap}
        figures = objective.figures(w)
        if "correct" in figures:
            found["accuracy"] = figures["correct"] / n
        return found

    def _counts(self) -> dict[str, Any]:
        counts = self._epochs.staleness()
        total = sum(counts)
        return {
            "epoch": self._samples / self.objective.shard.n,
            "step": self.steps,
            "messages": self.steps,
            "bytes": 0,
            "time_s": self._seconds,
            "samples_seen": self._samples,
            "samples_per_s": self._samples / self._seconds if self._seconds > 0 else 0.0,
            "staleness_mean": sum(s * c for s, c in enumerate(counts)) / total if total else 0.0,
            "staleness_max": max(len(counts) - 1, 0),
            "staleness_counts": counts,
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
        if ends.messages is not None and self.steps >= ends.messages:
            return "messages"
        return ""
