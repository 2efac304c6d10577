"""The parameter server's methods: equal to their serial references, and at the optimum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from actors.server.ends import Ends
from raylab.algorithms.server.rule_factory import figure, server_rule, worker_rule
from raylab.errors import ConfigError, NonFiniteLossError
from raylab.problems.objective import Shard
from raylab.simulator import Event, Timing, simulate
from tests.reference import parameter_server as reference
from tests.server_problems import linear, linear_objectives, pca_objectives, settings_for

pytestmark = pytest.mark.unit

EXACT = {"rtol": 1e-10, "atol": 1e-13}


def run(
    method, objectives, *, straggler="none", messages=None, epochs=None, tolerance=1e-9, **options
):
    settings = settings_for(method, objectives, **options)
    ends = Ends(
        messages=messages,
        samples=None if epochs is None else epochs * settings.n,
        tolerance=0.0 if epochs is None else tolerance,
        figure=figure(settings),
        certify_samples=settings.n,
    )
    return simulate(settings, objectives, straggler=straggler, ends=ends)


# ------------------------------------------------------------------ one worker, no delay


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize("batch", [1, 7])
def test_one_worker_of_asysvrg_is_serial_svrg(logistic, batch):
    problem = linear(logistic=logistic)
    (objective,) = objectives = linear_objectives(problem, 1)
    found = run("asysvrg", objectives, messages=2 * 21 + 2, eta=0.2, batch=batch, inner=21)
    start = np.zeros(problem.x.shape[1])
    expected = reference.svrg(problem, start, 0.2, 21, objective.batches)
    assert len(objective.batches) == 42
    assert {len(rows) for rows in objective.batches} == {batch}
    np.testing.assert_allclose(found.weights, expected, **EXACT)


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize("samples", [1, 9])
def test_one_worker_of_dis_dfsdca_is_serial_dual_free_ascent(logistic, samples):
    problem = linear(logistic=logistic)
    (objective,) = objectives = linear_objectives(problem, 1)
    found = run("dis_dfsdca", objectives, messages=50, eta=0.05, local_steps=samples)
    expected, alpha = reference.mini_batch_dual_free(problem, 0.05, objective.batches)
    if samples == 1:
        flat = list(itertools.chain.from_iterable(objective.batches))
        np.testing.assert_allclose(reference.dfsdca(problem, 0.05, flat)[0], expected, **EXACT)
    np.testing.assert_allclose(found.weights, expected, **EXACT)
    np.testing.assert_allclose(
        found.weights, alpha.sum(axis=0) / (problem.strength * problem.n), **EXACT
    )


@pytest.mark.parametrize("logistic", [False, True])
def test_dfsdca_is_algorithm_5(logistic):
    problem = linear(logistic=logistic)
    (objective,) = objectives = linear_objectives(problem, 1)
    found = run("dfsdca", objectives, messages=3, eta=0.05, local_steps=70)
    flat = list(itertools.chain.from_iterable(objective.batches))
    assert len(flat) == 210
    np.testing.assert_allclose(found.weights, reference.dfsdca(problem, 0.05, flat)[0], **EXACT)


def test_sdca_is_algorithm_4():
    problem = linear()
    (objective,) = objectives = linear_objectives(problem, 1)
    found = run("sdca", objectives, messages=3, local_steps=40)
    flat = list(itertools.chain.from_iterable(objective.batches))
    np.testing.assert_allclose(found.weights, reference.sdca(problem, flat)[0], **EXACT)


@pytest.mark.parametrize("straggler", ["none", "paper"])
def test_cocoa_plus_adds_what_all_workers_found_whoever_was_slow(straggler):
    problem = linear()
    objectives = linear_objectives(problem, 3)
    found = run("cocoa_plus", objectives, messages=12, local_steps=15, straggler=straggler)
    rounds = [
        [[each.shard.lo + row for row in each.batches[i]] for each in objectives] for i in range(4)
    ]
    np.testing.assert_allclose(found.weights, reference.cocoa_plus(problem, rounds)[0], **EXACT)


def test_a_dual_free_method_steps_through_an_objective_without_a_pass_of_its_own():
    (objective,) = objectives = pca_objectives(1)
    found = run("dfsdca", objectives, messages=2, eta=0.05, local_steps=30)
    rows = [worker_rule(settings_for("dfsdca", objectives, local_steps=30), objective, 0)]
    w, alpha = np.zeros(objective.dim), objective.zero_duals()
    for number in range(2):
        for row in rows[0]._ordered_rows(number):
            kappa = objective.residuals(w, alpha, np.array([row]))[0]
            alpha[row] -= 0.05 * objective.strength * objective.shard.n * kappa
            w = w - 0.05 * kappa
    np.testing.assert_allclose(found.weights, w, **EXACT)


# ------------------------------------------------------------------ the optimum


@pytest.mark.parametrize("sampling", ["uniform", "importance", "adaptive"])
@pytest.mark.parametrize("broadcast", [0, 3])
def test_every_sampling_ends_at_the_optimum_with_the_relation_kept(sampling, broadcast):
    problem = linear(n=160, strength=0.5)
    problem.x[:20] *= 2.0
    found = run(
        "dis_dfsdca", linear_objectives(problem, 4), epochs=300, straggler="paper",
        sampling=sampling, broadcast=broadcast, local_steps=8,
    )  # fmt: skip
    assert found.ended_by == "tolerance"
    assert max(row["relation"] for row in found.rows) < 1e-12
    np.testing.assert_allclose(found.weights, problem.solution(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["asysgd", "sgd_svrg"])
def test_sgd_comes_near_and_svrg_after_it_arrives(method):
    problem = linear(n=160)
    epochs = 60 if method == "asysgd" else 150
    found = run(method, linear_objectives(problem, 4), epochs=epochs, batch=8, straggler="paper")
    gap = problem.value(found.weights) - problem.value(problem.solution())
    assert gap < (5e-3 if method == "asysgd" else 1e-9)


# ------------------------------------------------------------------ the automatic step


@pytest.mark.parametrize("method", ["dis_dfsdca", "asysvrg"])
def test_a_step_that_is_too_long_is_halved_until_the_certificates_fall(method, monkeypatch):
    monkeypatch.setattr(
        "raylab.algorithms.server.base_rules.chosen_eta", lambda settings: 64.0, raising=True
    )
    problem = linear(n=160)
    objectives = linear_objectives(problem, 4)
    found = run(method, objectives, epochs=500, straggler="paper", batch=8)
    rewound = [row for row in found.rows if "rewound" in row]
    assert len(rewound) >= 3
    assert found.figures["eta"] < 64.0 / 2**3
    gap = problem.value(found.weights) - problem.value(problem.solution())
    assert gap < 1e-8
    if method == "dis_dfsdca":
        good = [row for row in found.rows if "rewound" not in row]
        assert max(row["relation"] for row in good) < 1e-12


def test_a_good_certificate_is_never_far_above_the_best_before_it():
    problem = linear(n=160)
    found = run("dis_dfsdca", linear_objectives(problem, 8), epochs=100, straggler="heavy")
    gaps = [row["duality_gap"] for row in found.rows if "rewound" not in row]
    best = np.minimum.accumulate(gaps)
    assert all(gap <= 4.0 * low for gap, low in zip(gaps[1:], best[:-1], strict=True))


def test_a_given_step_that_diverges_is_an_error_that_names_it():
    objectives = linear_objectives(linear(), 2)
    with pytest.raises(Exception, match="eta=50"):
        run("dis_dfsdca", objectives, epochs=2000, eta=50.0)


@pytest.mark.parametrize(("method", "workers"), [("sdca", 1), ("cocoa_plus", 3)])
@pytest.mark.parametrize("logistic", [False, True])
def test_a_method_without_a_step_never_goes_back_though_its_gap_rises(method, workers, logistic):
    problem = linear(n=90, logistic=logistic)
    problem.x[:] *= np.array([1.0, 300.0, 1.0, 100.0, 1.0])
    found = run(method, linear_objectives(problem, workers), epochs=400)
    gaps = [row["duality_gap"] for row in found.rows]
    assert any(gap > 4.0 * min(gaps[:i]) for i, gap in enumerate(gaps) if i)
    assert not any("rewound" in row for row in found.rows)
    duals = np.array([row["dual"] for row in found.rows])
    assert (np.diff(duals) >= -1e-12).all()
    assert max(row["relation"] for row in found.rows) < 1e-9
    assert duals[-1] > 2.0 * duals[2] > 0.0


def test_a_method_without_a_step_whose_values_overflow_says_what_to_do():
    rule = server_rule(settings_for("sdca", linear_objectives(linear(), 1)), np.zeros(5))
    with pytest.raises(NonFiniteLossError, match="sdca, which has no step: scale the columns"):
        rule.judge({"duality_gap": np.inf, "primal": np.inf})


# ------------------------------------------------------------------ what an objective must be


class GradientOnly:
    """An objective without duals: a user's loss and gradient."""

    strength, smoothness, convex, dim = 0.1, 2.0, True, 3

    def __init__(self, problem, shard):
        self.shard = shard
        self._x, self._y = problem.x[shard.lo : shard.hi], problem.y[shard.lo : shard.hi]

    def initial(self):
        return np.ones(3)

    def losses(self, w):
        return float(((self._x @ w - self._y) ** 2).sum() / 2)

    def gradients(self, w, rows=None):
        x, y = (self._x, self._y) if rows is None else (self._x[rows], self._y[rows])
        return x.T @ (x @ w - y)

    def figures(self, w):
        return {}

    def curvature(self):
        return 2.0 * self.shard.rows


def test_any_objective_with_loss_and_gradient_trains_without_duals_and_is_refused_with():
    problem = linear(d=3)
    shards = [Shard(lo=0, hi=30, n=60), Shard(lo=30, hi=60, n=60)]
    objectives = [GradientOnly(problem, shard) for shard in shards]
    found = run("asysvrg", objectives, epochs=300)
    np.testing.assert_allclose(found.weights, problem.solution(), rtol=1e-3)
    with pytest.raises(ConfigError, match="needs an objective with a dual for each sample"):
        run("dis_dfsdca", objectives, epochs=1)
    with pytest.raises(ConfigError, match="linear models"):
        run("cocoa_plus", pca_objectives(2), epochs=1)


# ------------------------------------------------------------------ losses and late joins


def test_workers_that_die_come_back_with_what_they_kept_and_the_relation_holds():
    problem = linear(n=160)
    objectives = linear_objectives(problem, 4)
    settings = settings_for("dis_dfsdca", objectives, local_steps=4)
    found = simulate(
        settings, objectives, straggler="paper+dies:worker=2,message=9+late:worker=3,seconds=0.2",
        timing=Timing(sample_s=1e-3, detect_s=0.01, restart_s=0.03),
        events=[
            Event(time_s=0.3, kind="checkpoint"),
            Event(time_s=0.5, kind="death", worker=0),
            Event(time_s=0.6, kind="repeat", worker=1),
            Event(time_s=0.9, kind="death", worker=0),
        ],
        ends=Ends(samples=200 * 160, tolerance=1e-9, figure="duality_gap", certify_samples=80),
    )  # fmt: skip
    assert (found.deaths, found.repeats) == (3, 1)
    assert found.ended_by == "tolerance"
    assert max(row["relation"] for row in found.rows) < 1e-12
    np.testing.assert_allclose(found.weights, problem.solution(), rtol=1e-3, atol=1e-5)


def test_a_simulated_run_repeats_itself_to_the_last_bit():
    def once():
        objectives = linear_objectives(linear(), 4)
        return run("dis_dfsdca", objectives, messages=200, straggler="heavy", sampling="adaptive")

    first, second = once(), once()
    assert first.trace == second.trace
    assert first.rows == second.rows
    assert np.array_equal(first.weights, second.weights)
