"""Claim: on real data every method ends, linearly, at the optimum that others compute.

    python -m benchmarks.certificates --data-dir DIR [--files 'a9a.*' 'covtype*'] [--ray]

DIR holds LIBSVM text, plain or compressed, such as a9a.bz2; every set of at most 2,000 columns is
trained with 1, 4 and 8 workers (sdca is serial), the papers' stragglers on, under virtual time;
`--ray` repeats the two smallest on actors. A line is a certificate, the exit status 1 if one fails:

    ridge      w within 1e-6, relatively, of the solution of the normal equations; gap <= 1e-8
    linear     the same runs: log10 of the gap against epochs, by least squares: falls, R² >= 0.9
    logistic   P(w) within 1e-8 of scikit-learn's optimum; gap <= 1e-8
    pca        (3.40) with mu below each ‖x_i‖² + lambda, so that no φ_i is convex: log10 of the
               gradient's norm against epochs falls with R² >= 0.9; w within 1e-6 of the solution
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.train import RunConfig
from sklearn.datasets import load_svmlight_file
from sklearn.linear_model import LogisticRegression

from actors.server.ends import Ends
from benchmarks.session import ray_session
from benchmarks.stragglers import STRAGGLER, objectives_of, quadratic_optimum, settings_of
from raylab import ParameterServerTrainer
from raylab.algorithms.server.rule_factory import SERVER_METHODS, figure
from raylab.data import open_rows
from raylab.problems import Objective
from raylab.simulator import simulate

METHODS = ("dis_dfsdca", "sdca", "cocoa_plus", "asysvrg")
WORKERS = (1, 4, 8)
SERIAL = ("sdca",)
TOLERANCE = 1e-13
"""Of the gap, near what rounding leaves of P - D. One of 1e-8 bounds the error of w by
sqrt(2e-8/lambda) only, far above 1e-6.
"""
GOOD_GAP, GOOD_W, GOOD_P, GOOD_FIT = 1e-8, 1e-6, 1e-8, 0.9
SMALLEST, MOST_COLUMNS = 2, 2000
PCA_STRENGTH = 0.05

Vector = NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """One line of the table."""

    name: str
    data: str
    method: str
    workers: int
    found: str
    good: bool

    def __str__(self) -> str:
        """Return the line."""
        end = "yes" if self.good else "**NO**"
        return (
            f"| {self.name} | {self.data} | {self.method} | {self.workers} | {self.found} | {end} |"
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a run has ended."""

    w: Vector
    rows: Rows


def fitted(rows: Rows, name: str) -> tuple[float, float]:
    """Return the slope of log10 of a figure against epochs, by least squares, and R²."""
    found = [(row["epoch"], row[name]) for row in rows if row[name] > 0]
    epochs, logs = np.array(found).T
    logs = np.log10(logs)
    if len(found) < 3:
        return float("nan"), float("nan")
    slope, above = np.polyfit(epochs, logs, 1)
    left = logs - (slope * epochs + above)
    return float(slope), float(1 - left @ left / np.sum((logs - logs.mean()) ** 2))


class LibsvmSet:
    """A file as scikit-learn reads it, and what others compute from that.

    Args:
        path: of LIBSVM text.
        strength: λ.
    """

    def __init__(self, path: Path, strength: float) -> None:
        self.path = path
        self.name = path.name.removesuffix(".bz2").removesuffix(".libsvm.binary.scale")
        self.strength = strength
        self.x, labels = load_svmlight_file(str(path))
        different = np.unique(labels)
        self.n, self.dim = self.x.shape
        self.y = np.where(labels == different[-1], 1.0, -1.0) if len(different) == 2 else labels
        self.targets = labels
        self.two_classes = len(different) == 2

    def tolerance(self, method: str) -> float:
        """Return how small a gap of ridge makes an error of w that is small enough: without duals
        it is |∇P|²/(2λ), as small as one likes, with which |w - w*| <= |∇P|/λ.
        """
        if SERVER_METHODS[method].duals:
            return TOLERANCE
        return self.strength / 2 * (GOOD_W * float(np.linalg.norm(self.closed_form()))) ** 2

    def closed_form(self) -> Vector:
        """Return the solution of ridge's normal equations."""
        hessian = (self.x.T @ self.x).toarray() / self.n + self.strength * np.eye(self.dim)
        solution: Vector = np.linalg.solve(hessian, self.x.T @ self.targets / self.n)
        return solution

    def logistic_optimum(self) -> float:
        """Return the least logistic P that scikit-learn finds."""
        model = LogisticRegression(
            C=1 / (self.strength * self.n), fit_intercept=False, tol=1e-10, max_iter=10_000
        ).fit(self.x, self.y)
        return self.logistic_value(model.coef_[0])

    def logistic_value(self, w: Vector) -> float:
        """Return the logistic P(w)."""
        losses = np.logaddexp(0.0, -self.y * (self.x @ w))
        return float(losses.mean() + self.strength / 2 * (w @ w))


def simulated(
    method: str, objectives: Sequence[Objective], epochs: float, tolerance: float
) -> Trained:
    """Train under virtual time, the papers' stragglers on."""
    settings = settings_of(method, objectives)
    ends = Ends(
        samples=epochs * settings.n,
        tolerance=tolerance,
        figure=figure(settings),
        certify_samples=settings.n,
    )
    found = simulate(settings, objectives, straggler=STRAGGLER, ends=ends)
    return Trained(w=found.weights, rows=found.rows)


def on_actors(method: str, workers: int, data: LibsvmSet) -> Trained:
    """Train on the actors of the Ray that runs, the papers' stragglers on."""
    with tempfile.TemporaryDirectory() as folder:
        found = ParameterServerTrainer(
            "ridge",
            method=method,
            workers=workers,
            strength=data.strength,
            straggler=STRAGGLER,
            resources_per_worker={"CPU": 0.1},
            run_config=RunConfig(storage_path=folder, name="run"),
        ).fit(f"libsvm:{data.path}", epochs=1000, tolerance=data.tolerance(method), progress=False)
        return Trained(w=found.weights["w"].numpy(), rows=found.table.to_pylist())


def judged(
    data: LibsvmSet, problem: str, method: str, workers: int, trained: Trained, where: str
) -> Iterator[Certificate]:
    """Yield the certificates of one run of a linear model."""
    gap = trained.rows[-1]["duality_gap"]

    def line(name: str, found: str, *, good: bool) -> Certificate:
        return Certificate(
            name=f"{name}{where}", data=data.name, method=method, workers=workers,
            found=found, good=good,
        )  # fmt: skip

    if problem == "ridge":
        best = data.closed_form()
        error = float(np.linalg.norm(trained.w - best) / np.linalg.norm(best))
        found = f"w off by {error:.1e}, gap {gap:.1e}, {trained.rows[-1]['epoch']:.0f} epochs"
        yield line("ridge", found, good=error <= GOOD_W and gap <= GOOD_GAP)
        slope, fit = fitted(trained.rows, "duality_gap")
        found = f"10^({slope:.2f} · epochs), R² {fit:.3f}"
        yield line("linear", found, good=slope < 0 and fit >= GOOD_FIT)
        return
    above = data.logistic_value(trained.w) - data.logistic_optimum()
    found = f"P(w) above scikit-learn's by {above:.1e}, gap {gap:.1e}"
    yield line("logistic", found, good=abs(above) <= GOOD_P and gap <= GOOD_GAP)


def of_linear_models(data: LibsvmSet, folder: Path, epochs: float) -> Iterator[Certificate]:
    """Yield the certificates of ridge and the logistic loss under virtual time."""
    for problem in ("ridge", "logistic") if data.two_classes else ("ridge",):
        for workers in WORKERS if problem == "ridge" else WORKERS[1:2]:
            objectives = objectives_of(
                f"libsvm:{data.path}", problem, workers, data.strength, folder
            )
            for method in METHODS:
                if method not in SERIAL or workers == 1:
                    small = data.tolerance(method) if problem == "ridge" else TOLERANCE
                    trained = simulated(method, objectives, epochs, small)
                    yield from judged(data, problem, method, workers, trained, "")


def of_components(spec: str, folder: Path, mu: float) -> Iterator[Certificate]:
    """Yield the certificates of (3.40), whose rows have the norm 1."""
    source = open_rows(spec, folder=folder)
    shortest = float(np.min(np.sum(source.block(0, source.n).matrix() ** 2, axis=1)))
    for workers in WORKERS:
        objectives = objectives_of(spec, "pca", workers, PCA_STRENGTH, folder, mu=mu)
        best = quadratic_optimum(objectives)
        for method in ("dis_dfsdca", "asysvrg"):
            trained = simulated(method, objectives, 2000.0, 1e-9)
            slope, fit = fitted(trained.rows, "gradient_norm")
            error = float(np.linalg.norm(trained.w - best) / np.linalg.norm(best))
            good = slope < 0 and fit >= GOOD_FIT and error <= GOOD_W
            found = f"10^({slope:.3f} · epochs), R² {fit:.3f}, w off by {error:.1e}"
            yield Certificate(
                name="pca", data=spec, method=method, workers=workers, found=found,
                good=good and mu - PCA_STRENGTH < shortest,
            )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a certificate fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--files", nargs="+", default=["*.bz2"], help="patterns of their names")
    parser.add_argument("--strength", type=float, default=0.1, help="lambda")
    parser.add_argument("--epochs", type=float, default=2000.0)
    parser.add_argument("--pca", default="pca:n=5000,d=50", help="rows; empty: none")
    parser.add_argument("--mu", type=float, default=0.5)
    parser.add_argument("--ray", action="store_true", help="the smallest sets on actors, too")
    options = parser.parse_args(arguments)
    paths = {path for pattern in options.files for path in options.data_dir.glob(pattern)}
    sets = [LibsvmSet(path, options.strength) for path in paths]
    sets = sorted((each for each in sets if each.dim <= MOST_COLUMNS), key=lambda each: each.n)
    print("| certificate | data | method | workers | found | holds |")
    print("|" + " --- |" * 6)
    failed = lines = 0
    with tempfile.TemporaryDirectory() as name:
        for certificate in _all(sets, Path(name), options):
            print(certificate, flush=True)
            lines += 1
            failed += not certificate.good
    print(f"\n{failed} of {lines} certificates failed")
    return 1 if failed or not lines else 0


def _all(
    sets: Sequence[LibsvmSet], folder: Path, options: argparse.Namespace
) -> Iterator[Certificate]:
    for data in sets:
        yield from of_linear_models(data, folder, options.epochs)
    if options.pca:
        yield from of_components(options.pca, folder, options.mu)
    if options.ray:
        with ray_session(2):
            for data in sets[:SMALLEST]:
                yield from of_actors(data)


def of_actors(data: LibsvmSet) -> Iterator[Certificate]:
    """Yield the certificates of ridge on actors."""
    for method in METHODS:
        workers = 1 if method in SERIAL else 4
        trained = on_actors(method, workers, data)
        yield from judged(data, "ridge", method, workers, trained, ", on actors")


if __name__ == "__main__":
    sys.exit(main())
