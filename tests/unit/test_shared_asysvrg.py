"""AsySVRG in shared memory: serial SVRG with one thread, the same optimum with more."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from actors.server.ends import Ends
from raylab.algorithms.shared_memory.asysvrg import SharedMemorySolver
from raylab.algorithms.shared_memory.epoch import draw, steps_in_python
from raylab.algorithms.shared_memory.settings import SharedSettings
from raylab.algorithms.shared_memory.step_sizes import auto_eta, inner_steps, theory_eta
from raylab.algorithms.shared_memory.training import SharedLimits, SharedTraining
from raylab.data.rows import RowBlock
from raylab.errors import ConfigError, DataError, NonFiniteLossError
from raylab.problems.kernels import HINGE, LOGISTIC, RIDGE
from raylab.problems.linear import LinearModel, Loss
from raylab.problems.objective import Objective, Shard
from tests.reference.shared_svrg import linear_gradient, svrg

pytestmark = pytest.mark.unit

N, DIM, STRENGTH = 60, 23, 0.05
LOSSES = {"ridge": RIDGE, "logistic": LOGISTIC, "smoothed_hinge": HINGE}


def matrix_and_labels(seed: int = 0, n: int = N, dim: int = DIM) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    x = draws.standard_normal((n, dim)) * (draws.random((n, dim)) < 0.3)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-9
    y = np.sign(x @ draws.standard_normal(dim) + 0.1 * draws.standard_normal(n))
    return x, y


def sparse_block(x: np.ndarray, y: np.ndarray) -> RowBlock:
    columns = [np.flatnonzero(row) for row in x]
    return RowBlock(
        indptr=np.cumsum([0] + [len(each) for each in columns], dtype=np.int64),
        indices=np.concatenate(columns).astype(np.int32),
        values=np.concatenate([row[each] for row, each in zip(x, columns, strict=True)]),
        labels=y.copy(),
        dim=x.shape[1],
    )


def model(x: np.ndarray, y: np.ndarray, loss: str = "ridge", *, dense: bool = False) -> LinearModel:
    block = RowBlock.of_matrix(x, y) if dense else sparse_block(x, y)
    shard = Shard(lo=0, hi=len(x), n=len(x))
    return LinearModel(block, shard, strength=STRENGTH, loss=Loss(code=LOSSES[loss]))


class InPython:
    """An objective with nothing but losses and gradients, as a user writes it."""

    def __init__(self, inner: LinearModel) -> None:
        self._inner = inner
        for name in ("shard", "dim", "strength", "smoothness", "convex"):
            setattr(self, name, getattr(inner, name))
        for name in ("initial", "losses", "gradients", "curvature"):
            setattr(self, name, getattr(inner, name))

    def figures(self, w: np.ndarray) -> dict[str, float]:
        return {}


def solving(objective: Objective, **settings: Any) -> SharedMemorySolver:
    return SharedMemorySolver(objective, SharedSettings(**settings))


def last(solver: SharedMemorySolver, **ends) -> dict:
    return list(solver.run(Ends(**ends)))[-1]


# ------------------------------------------------------------------------- one thread is serial


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", ["sparse", "dense", "python"])
@pytest.mark.parametrize(("batch", "block"), [(1, 1), (3, 7), (4, DIM)])
def test_one_thread_is_serial_svrg_on_the_same_samples_and_coordinates(loss, rows, batch, block):
    x, y = matrix_and_labels()
    objective = model(x, y, loss, dense=rows == "dense")
    solver = solving(
        InPython(objective) if rows == "python" else objective,
        eta=0.4, inner=37, batch=batch, coordinates=block, seed=5,
    )  # fmt: skip
    row = last(solver, messages=3 * 37)
    epochs = []
    for epoch in range(3):
        samples, first = draw(5, epoch, 37, batch, N, DIM)
        epochs.append((samples, [[(lo + j) % DIM for j in range(block)] for lo in first]))
    expected = svrg(linear_gradient(loss, x, y, STRENGTH), np.zeros(DIM), N, eta=0.4, epochs=epochs)
    np.testing.assert_allclose(solver.w, expected, rtol=1e-10, atol=1e-14)
    assert row["ended_by"] == "messages"
    assert row["samples_seen"] == 3 * N + 3 * 37 * batch
    assert row["staleness_counts"] == [37]


def test_an_epoch_draws_every_sample_and_every_coordinate_and_no_two_epochs_the_same():
    samples, first = draw(0, 0, 400, 3, 10, 7)
    assert np.unique(samples).tolist() == list(range(10))
    assert np.unique(first).tolist() == list(range(7))
    again, _ = draw(0, 0, 400, 3, 10, 7)
    other, _ = draw(0, 1, 400, 3, 10, 7)
    assert np.array_equal(samples, again)
    assert not np.array_equal(samples, other)


# ------------------------------------------------------------------------- certificates


def test_the_certificate_of_ridge_is_that_of_the_closed_form():
    x, y = matrix_and_labels()
    solver = solving(model(x, y), batch=2)
    rows = list(solver.run(Ends(tolerance=1e-12, figure="duality_gap", samples=1e6)))
    best = np.linalg.solve(x.T @ x / N + STRENGTH * np.eye(DIM), x.T @ y / N)
    least = ((x @ best - y) ** 2).mean() / 2 + STRENGTH / 2 * best @ best
    assert rows[-1]["ended_by"] == "tolerance"
    np.testing.assert_allclose(solver.w, best, rtol=1e-4, atol=1e-6)
    for row in rows:
        assert row["dual"] <= least + 1e-14
        assert row["primal"] >= least - 1e-14
        assert row["duality_gap"] == pytest.approx(row["primal"] - row["dual"], abs=1e-14)
    z = x @ np.zeros(DIM)
    duals = y - z
    w_of_duals = x.T @ duals / (STRENGTH * N)
    dual = (y * duals - duals**2 / 2).mean() - STRENGTH / 2 * w_of_duals @ w_of_duals
    assert rows[0]["dual"] == pytest.approx(dual, rel=1e-12)
    assert rows[0]["epoch"] == 0
    assert rows[1]["epoch"] == 3
    assert rows[0]["gradient_norm"] == pytest.approx(np.linalg.norm(x.T @ y / N), rel=1e-12)
    assert rows[-1]["accuracy"] == (np.sign(x @ solver.w) == y).mean()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dense", [False, True])
def test_threads_that_write_over_each_other_reach_the_optimum_linearly(loss, dense):
    x, y = matrix_and_labels(seed=1, n=3000, dim=40)
    solver = solving(model(x, y, loss, dense=dense), threads=4, coordinates=20)
    rows = list(solver.run(Ends(tolerance=1e-12, figure="duality_gap", samples=200 * 3000)))
    assert rows[-1]["ended_by"] == "tolerance"
    gaps = np.log([row["duality_gap"] for row in rows])
    slope = np.polyfit(np.arange(len(gaps)), gaps, 1)[0]
    assert slope < -0.5
    assert sum(rows[1]["staleness_counts"]) == solver.inner


def test_an_objective_that_is_not_convex_has_a_gradient_norm_and_no_gap():
    x, y = matrix_and_labels()
    objective = InPython(model(x, y))
    objective.convex = False
    solver = solving(objective, threads=3, batch=5)
    row = last(solver, tolerance=1e-7, figure="gradient_norm", samples=1e6)
    assert row["ended_by"] == "tolerance"
    assert "duality_gap" not in row


# ------------------------------------------------------------------------- staleness


def test_staleness_is_what_the_others_completed_between_reading_and_writing():
    x, y = matrix_and_labels()
    staleness = np.zeros((2, 8), dtype=np.int64)

    class Interrupted(InPython):
        """Between thread 0's reading and writing in step 2, thread 1 makes all its steps."""

        def gradients(self, w, rows=None):
            found = self._inner.gradients(w, rows)
            if np.shares_memory(rows, samples[2]) and not staleness[1].any():
                steps(1)
            return found

    objective = Interrupted(model(x, y))
    del objective.gradients  # the instance's, so that the class's is called
    samples, first = draw(0, 0, 6, 5, N, DIM)
    w, done = np.zeros(DIM), np.zeros((2, 8), dtype=np.int64)

    def steps(thread: int) -> None:
        steps_in_python(
            objective, w, np.zeros(DIM), np.zeros(DIM), 0.1, samples, first, DIM, thread, 2, done,
            staleness[thread],
        )  # fmt: skip

    steps(0)
    assert staleness[:, :5].tolist() == [[2, 0, 0, 1, 0], [3, 0, 0, 0, 0]]
    assert done[:, 0].tolist() == [3, 3]


# ------------------------------------------------------------------------- the step


def test_a_step_that_is_too_long_goes_back_and_halves_only_where_it_may():
    x, y = matrix_and_labels()
    solver = solving(model(x, y), batch=2, inner=400)
    solver.eta = long = 40.0
    rows = list(solver.run(Ends(tolerance=1e-9, figure="duality_gap", samples=1e6)))
    assert rows[-1]["ended_by"] == "tolerance"
    rewound = [row for row in rows if "rewound" in row]
    assert rewound
    assert rows[-1]["eta"] == long / 2 ** len(rewound)
    for before, after in itertools.pairwise(rows):
        if "rewound" in before:
            assert after["primal"] <= rows[0]["primal"]
    fixed = solving(model(x, y), batch=2, inner=4000, eta=long)
    with pytest.raises(NonFiniteLossError, match="eta=40"):
        list(fixed.run(Ends(samples=1e6)))


def test_the_theorem_s_step_meets_its_bound_on_the_delay_and_no_longer_one_would():
    for blocks, delta in itertools.product((1.0, 8.0, 100.0), (0, 1, 7)):
        x = theory_eta(smoothness=2.0, n=1000, blocks=blocks, delta=delta) * 2.0 * 1000 ** (2 / 3)

        def bound(x: float, d: float = blocks) -> float:
            return min(d / (2 * x), (3 * d - 28 * x * d) / (28 * x * x))

        assert delta**2 < bound(x)
        assert delta**2 >= bound(x / 0.98)
        m = inner_steps(n=1000, blocks=blocks, delta=delta)
        assert m == int(blocks * 1000 ** (2 / 3) / (6 * x))


def test_eta_theory_reduces_the_gradient_and_a_longer_one_is_a_note():
    x, y = matrix_and_labels()
    solver = solving(model(x, y), eta="theory", threads=2, coordinates=5)
    assert solver.settings.notes(solver.objective) == []
    rows = list(solver.run(Ends(messages=100 * solver.inner)))
    assert rows[-1]["gradient_norm"] < 0.5 * rows[0]["gradient_norm"]
    given = solving(model(x, y), eta=1.0, threads=2, coordinates=5)
    assert "Theorem 2.3.2" in given.settings.notes(given.objective)[0]
    assert f"{solver.eta:.3g}" in given.settings.notes(given.objective)[0]


def test_the_automatic_step_falls_with_the_staleness_and_grows_with_the_batch():
    steps = {
        (batch, late): auto_eta(
            smoothness=1.0, mean_curvature=0.2, strength=0.01, batch=batch, late=late
        )
        for batch in (1, 10)
        for late in (0.0, 3.0)
    }
    assert steps[1, 0.0] == pytest.approx(1 / 4.21)
    assert steps[10, 3.0] < steps[10, 0.0]
    assert steps[1, 0.0] < steps[10, 0.0]


# ------------------------------------------------------------------------- the rest


def test_a_restored_solver_goes_on_as_if_nothing_had_been():
    x, y = matrix_and_labels()
    solver = solving(model(x, y), batch=2, seed=3)
    run = solver.run(Ends(samples=1e9))
    for _ in range(4):
        next(run)
    saved = solver.save()
    rest = [next(run) for _ in range(3)]
    run.close()
    other = solving(model(x, y), batch=2, seed=3)
    other.restore(saved)
    again = other.run(Ends(samples=1e9))
    # It begins with the certificate that the first one had made last.
    next(again)
    found = [next(again) for _ in range(3)]
    again.close()
    for name in ("primal", "samples_seen", "step", "eta"):
        assert [row[name] for row in rest] == [row[name] for row in found]


def test_a_run_ends_at_the_step_that_it_is_told_to():
    x, y = matrix_and_labels()
    row = last(solving(model(x, y), batch=2, inner=37), messages=50)
    assert (row["ended_by"], row["messages"]) == ("messages", 50)
    row = last(solving(model(x, y), batch=2, inner=37), samples=2.5 * N)
    assert (row["ended_by"], row["samples_seen"]) == ("epochs", N + 2 * 37 + N + 2)


def test_rows_come_when_they_are_due_and_count_what_was_between():
    x, y = matrix_and_labels()
    ends = SharedLimits(samples=30 * N, certify_samples=7 * N)
    training = SharedTraining(solving(model(x, y), threads=2, batch=2), ends)
    told = list(training.run())
    rows = [row for row in told if row is not None]
    # A full gradient is made every three epochs.
    assert [row["epoch"] for row in rows] == [0, 9, 18, 27, 30]
    assert len(told) == 11
    assert [sum(row["staleness_counts"]) for row in rows] == [0, 3 * N, 3 * N, 3 * N, N]
    assert training.ended_by == "epochs"
    assert all("ended_by" not in row and row["workers"] == 2 for row in rows)
    np.testing.assert_array_equal(training.weights()["w"].numpy(), training.solver.w)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"threads": 0}, "threads"),
        ({"batch": 0}, "batch"),
        ({"inner": 0}, "inner"),
        ({"coordinates": DIM + 1}, "coordinates"),
        ({"eta": -1.0}, "eta"),
        ({"eta": "fast"}, "eta"),
    ],
)
def test_a_setting_out_of_its_range_is_named(wrong, what):
    x, y = matrix_and_labels()
    with pytest.raises(ConfigError, match=what):
        solving(model(x, y), **wrong)


def test_a_part_of_the_rows_is_not_enough():
    x, y = matrix_and_labels()
    shard = Shard(lo=0, hi=N, n=2 * N)
    part = LinearModel(sparse_block(x, y), shard, strength=STRENGTH, loss=Loss(code=RIDGE))
    with pytest.raises(DataError, match="60 of 120"):
        solving(part)
