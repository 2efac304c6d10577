"""Claim: without stragglers, one worker reaches a duality gap of 1e-6 within twice the time of the
best of scikit-learn's and copt's solvers.

    python -m benchmarks.solvers --data FOLDER [--sets a9a ijcnn1] [--copt FOLDER]

Ridge and logistic regression without intercept, on LIBSVM files. For every solver: the least number
of passes whose w has a gap of 1e-6, found by doubling and halving; then the CPU time of a run of
that many (all compute in one thread: set OMP_NUM_THREADS=1), certificates left out, median of the
repeats, interleaved. The gap is the same for all, P(w) - D(α) with α_i = -∇φ_i(w), that is
|∇P(w)|²/(2λ). Rows are in memory before; whatever a solver makes of them (norms, the power
iteration that the automatic step of some is taken from, conversions) counts.

Ours: the rules of one server and one worker, called one after the other, without Ray; and the
threads' AsySVRG with one thread, which cannot leave its certificates out. scikit-learn: SAG, SAGA,
and liblinear's dual solver, which for ridge is LinearSVR of squared loss with epsilon = 0. copt
(--copt: folder that it is installed in) compiles its loops in each call, so its time is that of a
round after the first, times the rounds (of SVRG each looks at every row twice); its step is the
best of 1/(3L) divided by 1, 4, 16, 64, as its regulariser is scaled by n over the rows that have a
column, which bounds the step where they are few; its logistic derivative is compiled without the
threads that copt gives it.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numba import njit
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVR

from actors.server.ends import Ends
from actors.server.protocols import Task
from raylab.algorithms.server.rule_factory import ServerSettings, server_rule, worker_rule
from raylab.algorithms.shared_memory.asysvrg import SharedMemorySolver
from raylab.algorithms.shared_memory.settings import SharedSettings
from raylab.data import open_rows
from raylab.data.rows import RowBlock
from raylab.problems import Shard
from raylab.problems.kernels import LOGISTIC, RIDGE
from raylab.problems.linear import LinearModel, Loss

GAP = 1e-6
MOST = 512  # passes, or
MOST_S = 10.0  # seconds of one run; a solver that needs more is given up
COPT_MOST = 200
OF_CURVATURE = ("dis_dfsdca", "asysvrg")  # whose automatic step is made of it
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One problem on one set."""

    block: RowBlock
    problem: str
    strength: float

    def objective(self) -> LinearModel:
        """Return the objective of all rows, made anew."""
        n = self.block.rows
        code = {"ridge": RIDGE, "logistic": LOGISTIC}[self.problem]
        return LinearModel(
            self.block, Shard(lo=0, hi=n, n=n), strength=self.strength, loss=Loss(code=code)
        )

    def matrix(self) -> scipy.sparse.csr_matrix:
        """Return the rows as scipy has them."""
        block = self.block
        if block.indices is None:
            return scipy.sparse.csr_matrix(block.matrix())
        shape = (block.rows, block.dim)
        parts = (block.values, block.indices, block.indptr.astype(np.int32))
        return scipy.sparse.csr_matrix(parts, shape=shape)

    def gap(self, w: Vector) -> float:
        """Return |∇P(w)|²/(2λ)."""
        gradient = self.objective().gradients(w) / self.block.rows + self.strength * w
        return float(gradient @ gradient) / (2 * self.strength)


Solver = Callable[[Case, int], tuple[Vector, float]]
"""From a case and a number of passes to w and the seconds."""


def ours(method: str, **options: Any) -> Solver:
    """Return a method of the server with one worker, as its rules compute it."""

    def solve(case: Case, passes: int) -> tuple[Vector, float]:
        began = time.process_time()
        objective = case.objective()
        n = case.block.rows
        settings = ServerSettings(
            method=method,
            workers=1,
            n=n,
            dim=objective.dim,
            strength=case.strength,
            smoothness=objective.smoothness,
            curvature=objective.curvature() / n if method in OF_CURVATURE else None,
            **options,
        )
        server = server_rule(settings, objective.initial())
        worker = worker_rule(settings, objective, 0)
        begun, in_phase, samples, number = -1, 0, 0, 0
        while samples < passes * n:
            phase = server.phase()
            if phase.number != begun:
                worker.begin(phase, server.opening())
                begun, in_phase = phase.number, 0
            task = Task(phase=phase, number=number, version=number)
            answer = server.answer(0)
            for piece in range(phase.pieces):
                worker.work(task, answer, piece)
            server.apply(0, worker.message(), 0)
            worker.commit()
            samples += worker.samples()
            number, in_phase = number + 1, in_phase + 1
            if phase.messages is not None and in_phase >= phase.messages:
                server.close_phase()
        w = server.answer(0)[0]
        return w.numpy().copy(), time.process_time() - began  # type: ignore[union-attr]

    return solve


def shared(case: Case, passes: int) -> tuple[Vector, float]:
    """Solve with the threads' AsySVRG, one thread, all coordinates."""
    began = time.process_time()
    objective = case.objective()
    solver = SharedMemorySolver(objective, SharedSettings(batch=1, coordinates=objective.dim))
    for _ in solver.run(Ends(samples=passes * case.block.rows)):
        pass
    return solver.w, time.process_time() - began


def sklearn_iterative(solver: str) -> Solver:
    """Return SAG or SAGA of scikit-learn."""

    def solve(case: Case, passes: int) -> tuple[Vector, float]:
        x, y, n = case.matrix(), case.block.labels, case.block.rows
        common = {"solver": solver, "max_iter": passes, "tol": 1e-15, "fit_intercept": False}
        model: Any
        if case.problem == "ridge":
            model = Ridge(alpha=case.strength * n, random_state=0, **common)
        else:
            model = LogisticRegression(C=1 / (case.strength * n), random_state=0, **common)
        began = time.process_time()
        model.fit(x, y)
        return model.coef_.ravel(), time.process_time() - began

    return solve


def liblinear(case: Case, passes: int) -> tuple[Vector, float]:
    """Solve with liblinear's dual coordinate descent."""
    x, y, n = case.matrix(), case.block.labels, case.block.rows
    common = {"dual": True, "max_iter": passes, "tol": 1e-15, "fit_intercept": False}
    model: Any
    if case.problem == "ridge":
        model = LinearSVR(
            C=1 / (2 * case.strength * n),
            epsilon=0.0,
            loss="squared_epsilon_insensitive",
            random_state=0,
            **common,
        )
    else:
        model = LogisticRegression(
            solver="liblinear", C=1 / (case.strength * n), random_state=0, **common
        )
    began = time.process_time()
    model.fit(x, y)
    return model.coef_.ravel(), time.process_time() - began


@njit
def _ridge_slope(p: Any, y: Any) -> Any:
    return p - y


@njit
def _logistic_slope(p: Any, y: Any) -> Any:
    return -y / (1 + np.exp(y * p))


class _EnoughError(Exception):
    """Ends a run of copt, which has no other way."""


@dataclass
class Copt:
    """SAGA or SVRG of copt, at the best of four steps."""

    name: str
    step: float = 0.0

    def run(self, case: Case, step: float, most: int, gap: float) -> tuple[Vector, list[float]]:
        """Return w after `most` rounds, or the first with that gap, and the time of each round."""
        from copt import minimize_saga, minimize_svrg

        minimise = {"saga": minimize_saga, "svrg": minimize_svrg}[self.name]
        slope = {"ridge": _ridge_slope, "logistic": _logistic_slope}[case.problem]
        took: list[float] = []
        began = time.process_time()
        last = np.zeros(case.block.dim)

        def callback(found: dict[str, Any]) -> None:
            nonlocal began
            took.append(time.process_time() - began)
            last[:] = found["x"]
            if len(took) > most or (gap > 0 and not case.gap(last) > gap):
                raise _EnoughError
            began = time.process_time()

        with contextlib.suppress(_EnoughError):
            minimise(
                slope,
                case.matrix(),
                case.block.labels,
                np.zeros(case.block.dim),
                step_size=step,
                alpha=case.strength,
                max_iter=most + 1,
                tol=0.0,
                callback=callback,
            )
        return last, took[1:]  # the first is before the first round

    def least(self, case: Case) -> int | None:
        """Choose the step, and return the rounds that it needs."""
        objective = case.objective()
        longest = 1 / (3 * (objective.smoothness + case.strength))
        best = None
        for divisor in (1, 4, 16, 64):
            w, took = self.run(case, longest / divisor, best or COPT_MOST, GAP)
            if case.gap(w) <= GAP and (best is None or len(took) < best):
                best, self.step = len(took), longest / divisor
        return best

    def __call__(self, case: Case, passes: int) -> tuple[Vector, float]:
        """Return w, and the time as if the loops had been compiled before."""
        w, took = self.run(case, self.step, max(passes, 4), 0.0)
        return w, passes * statistics.median(took[1:])


def least(solver: Solver, case: Case) -> int | None:
    """Return the least number of passes that reach the gap; None: more than are tried."""
    if isinstance(solver, Copt):
        return solver.least(case)
    high = 1
    while True:
        w, took = solver(case, high)
        if case.gap(w) <= GAP:
            break
        high *= 2
        if high > MOST or took > MOST_S / 2:
            return None
    low = high // 2
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        if case.gap(solver(case, middle)[0]) <= GAP:
            high = middle
        else:
            low = middle
    return high


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of LIBSVM files")
    parser.add_argument("--sets", nargs="+", default=["a9a", "ijcnn1", "mushrooms"])
    parser.add_argument("--problems", nargs="+", default=["ridge", "logistic"])
    parser.add_argument("--strengths", type=float, nargs="+", default=[1e-1, 1e-2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--copt", type=Path, help="folder that copt is installed in")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    solvers: dict[str, Solver] = {
        "dis_dfsdca": ours("dis_dfsdca"),
        "sdca": ours("sdca"),
        "dfsdca": ours("dfsdca"),
        "asysvrg": ours("asysvrg"),
        "shared_asysvrg": shared,
        "sklearn SAG": sklearn_iterative("sag"),
        "sklearn SAGA": sklearn_iterative("saga"),
        "liblinear dual": liblinear,
    }
    if options.copt is not None:
        sys.path.insert(0, str(options.copt))
        solvers |= {"copt SAGA": Copt("saga"), "copt SVRG": Copt("svrg")}
    print(
        f"CPU ms to a gap of {GAP} (passes); not reached: not in {MOST} passes or {MOST_S:g} s, "
        f"copt {COPT_MOST} rounds\n"
    )
    print("| set, problem, λ | " + " | ".join(solvers) + " |")
    print("|" + " --- |" * (1 + len(solvers)))
    for name in options.sets:
        source = open_rows(f"libsvm:{options.data}/{name}.bz2")
        block = source.block(0, source.n)
        for problem in options.problems:
            for strength in options.strengths:
                case = Case(block, problem, strength)
                passes = {key: least(solver, case) for key, solver in solvers.items()}
                times: dict[str, list[float]] = {key: [] for key in solvers}
                for _ in range(options.repeats):
                    for key, solver in solvers.items():
                        if (count := passes[key]) is not None:
                            times[key].append(solver(case, count)[1])
                cells = [
                    f"{1e3 * statistics.median(times[key]):.1f} ({passes[key]})"
                    if times[key]
                    else "not reached"
                    for key in solvers
                ]
                print(
                    f"| {name}, {problem}, {strength:g} | " + " | ".join(cells) + " |", flush=True
                )


if __name__ == "__main__":
    main()
