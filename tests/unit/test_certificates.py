"""On real data, with stragglers: the optimum that others compute, reached linearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from actors.server.ends import Ends
from benchmarks import certificates
from raylab.algorithms.server.rule_factory import figure
from raylab.data import open_rows
from raylab.problems import Objective, build, shards
from raylab.problems.pca import Pca
from raylab.simulator import Simulated, simulate
from tests.real_rows import real_rows
from tests.server_problems import settings_for

pytestmark = pytest.mark.unit

STRENGTH = 0.1
METHODS = ("dis_dfsdca", "cocoa_plus", "asysvrg")


def objectives_of(spec: str, folder: Path, problem: str, workers: int) -> list[Objective]:
    source = open_rows(spec, folder=folder)
    return [build(problem, source, shard, strength=STRENGTH) for shard in shards(source.n, workers)]


def trained(method: str, objectives: Sequence[Objective], tolerance: float) -> Simulated:
    settings = settings_for(method, objectives)
    ends = Ends(
        samples=2000.0 * settings.n,
        tolerance=tolerance,
        figure=figure(settings),
        certify_samples=settings.n,
    )
    return simulate(settings, objectives, straggler="paper", ends=ends)


def slope_and_fit(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Return the slope of the logarithm against epochs, by least squares, and R²."""
    epochs, logs = np.array([(row["epoch"], np.log(row[name])) for row in rows]).T
    return float(np.polyfit(epochs, logs, 1)[0]), float(np.corrcoef(epochs, logs)[0, 1] ** 2)


CASES = [
    *(("breast_cancer", method, workers) for method in METHODS for workers in (1, 4, 8)),
    *(("diabetes", method, 8) for method in METHODS),
    ("digits", "dis_dfsdca", 4),
    ("digits", "asysvrg", 4),
]


@pytest.mark.parametrize(("data", "method", "workers"), CASES)
def test_ridge_ends_at_the_closed_form_and_its_gap_falls_linearly(tmp_path, data, method, workers):
    real = real_rows(data, tmp_path)
    best = real.ridge(STRENGTH)
    # Without duals the gap is |∇P|²/(2λ), which bounds the error of w by |∇P|/λ.
    size = float(np.linalg.norm(best))
    small = 2e-14 if method != "asysvrg" else STRENGTH / 2 * (1e-6 * size) ** 2
    found = trained(method, objectives_of(real.spec, tmp_path, "ridge", workers), small)
    assert found.ended_by == "tolerance"
    assert found.figures["duality_gap"] <= 1e-8
    assert np.linalg.norm(found.weights - best) <= 1e-6 * size
    above = real.ridge_value(found.weights, STRENGTH) - real.ridge_value(best, STRENGTH)
    assert above <= found.figures["duality_gap"] + 1e-15
    slope, fit = slope_and_fit(found.rows, "duality_gap")
    assert slope < 0
    assert fit > 0.95


@pytest.mark.parametrize("method", ["sdca", "dfsdca"])
def test_serial_ascent_ends_there_too(tmp_path, method):
    real = real_rows("breast_cancer", tmp_path)
    best = real.ridge(STRENGTH)
    found = trained(method, objectives_of(real.spec, tmp_path, "ridge", 1), 2e-14)
    assert np.linalg.norm(found.weights - best) <= 1e-6 * np.linalg.norm(best)
    slope, fit = slope_and_fit(found.rows, "duality_gap")
    assert slope < 0
    assert fit > 0.95


@pytest.mark.parametrize("method", ["dis_dfsdca", "cocoa_plus", "asysvrg"])
def test_logistic_loss_ends_at_scikit_learns_optimum(tmp_path, method):
    real = real_rows("breast_cancer", tmp_path)
    found = trained(method, objectives_of(real.spec, tmp_path, "logistic", 4), 1e-12)
    model = LogisticRegression(
        C=1 / (STRENGTH * len(real.y)), fit_intercept=False, tol=1e-10, max_iter=1000
    ).fit(real.x, real.y)

    def primal(w: np.ndarray) -> float:
        losses = np.logaddexp(0.0, -real.y * (real.x @ w))
        return float(losses.mean() + STRENGTH / 2 * w @ w)

    assert found.figures["duality_gap"] <= 1e-8
    assert primal(found.weights) == pytest.approx(primal(model.coef_[0]), abs=1e-10)


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("method", ["dis_dfsdca", "asysvrg"])
def test_principal_components_of_which_no_loss_is_convex_are_found_linearly(method, workers):
    mu, strength = 0.5, 0.05
    source = open_rows("pca:n=400,d=8")
    objectives = [
        Pca(source.block(shard.lo, shard.hi), shard, strength=strength, mu=mu, seed=0)
        for shard in shards(source.n, workers)
    ]
    rows = source.block(0, source.n).matrix()
    hessian = mu * np.eye(rows.shape[1]) - rows.T @ rows / len(rows)
    assert np.linalg.eigvalsh(hessian)[0] > 0
    assert mu - strength < np.min(np.sum(rows**2, axis=1))
    found = trained(method, objectives, 1e-9)
    best = np.linalg.solve(hessian, objectives[0].b)
    assert np.linalg.norm(found.weights - best) <= 1e-6 * np.linalg.norm(best)
    slope, fit = slope_and_fit(found.rows, "gradient_norm")
    assert slope < 0
    assert fit > 0.95


def test_the_page_of_certificates_says_which_do_not_hold(tmp_path, capsys, monkeypatch):
    real_rows("diabetes", tmp_path)
    words = ["--data-dir", str(tmp_path), "--files", "diab*", "--pca", ""]
    monkeypatch.setattr(certificates, "WORKERS", (2,))
    monkeypatch.setattr(certificates, "METHODS", ("dis_dfsdca",))
    assert certificates.main(words) == 0
    assert "| ridge | diabetes.txt | dis_dfsdca | 2 | w off by " in capsys.readouterr().out
    assert certificates.main([*words, "--epochs", "3"]) == 1
    assert "**NO** |" in capsys.readouterr().out
