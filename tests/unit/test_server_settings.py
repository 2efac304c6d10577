"""The settings of the parameter server, its theorems' steps, and the stragglers' texts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.server.ends import Ends
from raylab.algorithms.server.parts import add_message, as_message
from raylab.algorithms.server.rule_factory import (
    SERVER_METHODS,
    ServerSettings,
    auto_eta,
    bound,
    chosen_eta,
    figure,
    notes,
    server_rule,
    theory_eta,
)
from raylab.algorithms.server.step_sizes import sgd_eta
from raylab.algorithms.server.stragglers import check_workers, outlived, parse
from raylab.algorithms.server.unused import unused
from raylab.errors import ConfigError
from raylab.simulator import Timing, simulate
from tests.server_problems import linear, linear_objectives, settings_for

pytestmark = pytest.mark.unit


def made(**changes):
    fields = {
        "method": "dis_dfsdca", "workers": 4, "n": 1000, "dim": 3, "strength": 0.1,
        "smoothness": 2.0, "curvature": 0.5,
    }  # fmt: skip
    return ServerSettings(**(fields | changes))


# ------------------------------------------------------------------ steps


def test_the_theorems_steps_are_the_papers():
    convex = made(local_steps=10, delta=5, eta="theory")
    assert theory_eta(convex) == pytest.approx(1 / (4 * 10 * 2 * 25 + 100 + 4))
    other = made(local_steps=10, delta=5, eta="theory", convex=False)
    expected = 0.01 / (2 * 20 * 25 * 0.01 + 8 * 20 * 25 * 2.1**2 + 4 * 0.1 * 4 + 1000 * 0.001)
    assert chosen_eta(other) == pytest.approx(expected)


def test_the_automatic_step_has_the_ceiling_of_the_duals_the_mean_and_the_noise():
    few = made(local_steps=1)
    assert auto_eta(few) == pytest.approx(1 / 100)
    many = made(local_steps=250)
    assert auto_eta(many) == pytest.approx(1 / (2 + 250 * 4 * 0.6))
    assert auto_eta(made(local_steps=1, sampling="importance")) == pytest.approx(1 / 200)
    for workers in (1, 2, 4, 8, 16, 64):
        settings = made(workers=workers, local_steps=10, n=64000, strength=1e-5)
        gain = auto_eta(settings) * 10 * (0.5 + 1e-5)
        # δ' = δ - a δ_stale is stable for a < 2 sin(π/(4τ + 2)).
        assert gain < 0.7 * 2 * math.sin(math.pi / (4 * (workers - 1) + 2))


def test_as_many_samples_are_a_message_as_leave_the_step_at_its_ceiling():
    settings = made(n=10000, curvature=2.0)
    assert settings.message_samples == 118
    assert auto_eta(settings) == pytest.approx(1 / 1000, rel=0.05)
    assert made().message_samples == 250 // 16
    assert made(strength=1e-6).message_samples == 1
    assert made(method="cocoa_plus").message_samples == 250


def test_the_step_of_sgd_falls_as_one_over_lambda_t():
    assert sgd_eta(0.5, 0.1, 0) == 0.5
    assert sgd_eta(0.5, 0.1, 10**6) == pytest.approx(1 / (0.1 * 10**6), rel=1e-3)


def test_what_is_beyond_a_theorem_is_a_note_that_states_its_bound():
    assert notes(made()) == []
    assert notes(made(eta="theory")) == []
    assert notes(made(eta=1e-9)) == []
    (note,) = notes(made(eta=0.01, delta=5, local_steps=10))
    bound_of_it = f"{theory_eta(made(delta=5, local_steps=10)):.3g}"
    assert "eta=0.01, delta=5, local_steps=10" in note
    assert "(3.18)" in note
    assert bound_of_it in note
    assert "(3.30)" in notes(made(eta=0.01, convex=False))[0]
    assert "delta=7" in notes(made(delta=7))[0]
    (note,) = notes(made(method="asysvrg", eta=0.01, delta=8))
    assert "(2.46), which is 5" in note
    assert notes(made(method="asysvrg", eta=0.001, delta=8)) == []


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "sdca"}, "sdca is serial and has one worker, but got workers=4"),
        ({"method": "dfsdca"}, "dfsdca is serial"),
        ({"method": "nadam"}, "method must be one of asysgd"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"n": 3}, "every worker needs a sample"),
        ({"smoothness": 0.0}, "smoothness must be above 0"),
        ({"strength": 0.0}, "lambda must be above 0 for methods with duals"),
        ({"eta": -1.0}, "eta must be above 0"),
        ({"eta": float("nan")}, "eta must be above 0"),
        ({"eta": "best"}, "eta must be a number"),
        ({"method": "asysvrg", "eta": "theory"}, r"is \(3.18\) or \(3.30\), of dis_dfsdca"),
        ({"method": "cocoa_plus", "eta": 0.1}, "has no step"),
        ({"method": "asysgd", "broadcast": 2}, "broadcasts are of dis_dfsdca"),
        ({"method": "asysgd", "sampling": "adaptive"}, "draws uniformly"),
        ({"sampling": "random"}, "sampling must be uniform"),
        ({"delta": 2}, "delta must be at least 3"),
        ({"method": "asysvrg", "delta": -1}, "delta must be at least 0"),
        ({"local_steps": 251}, "local_steps must be 1 to 250"),
        ({"local_steps": 0}, "local_steps must be 1"),
        ({"inner": 0}, "inner must be at least 1"),
        ({"pretrain": -1.0}, "pretrain must not be negative"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_the_rule(changes, words):
    with pytest.raises(ConfigError, match=words):
        made(**changes)


def test_methods_with_duals_begin_at_zero():
    with pytest.raises(ConfigError, match="begins with w = Σ"):
        server_rule(made(), np.ones(3))
    with pytest.raises(ConfigError, match=r"must have the shape \(3,\)"):
        server_rule(made(), np.zeros(4))


def test_bounds_of_the_staleness_fit_the_method():
    assert (bound(made()).updates, bound(made()).late) == (64, "wait")
    assert bound(made(eta="theory")).updates == 8
    assert bound(made(method="asysvrg", delta=0)).updates == 0
    assert bound(made(method="asysvrg")).late == "refresh"
    assert bound(made(workers=1)).updates == 0
    for name, method in SERVER_METHODS.items():
        assert method.name == name
        assert (method.late == "wait") == method.duals


def test_the_figure_is_the_gap_where_there_is_one():
    assert figure(made()) == "duality_gap"
    assert figure(made(convex=False)) == "gradient_norm"
    assert figure(made(method="asysvrg", strength=0.0)) == "gradient_norm"


def test_duals_are_marked_only_where_they_are_not_too_many():
    assert made().keeps_marks
    assert not made(method="cocoa_plus").keeps_marks
    assert not made(eta=0.1).keeps_marks
    assert not made(n=500_000, dual_width=500).keeps_marks


# ------------------------------------------------------------------ messages and stragglers


@pytest.mark.parametrize("method", SERVER_METHODS)
def test_rows_that_are_long_are_a_note_with_the_passes_they_take(method):
    workers = 1 if SERVER_METHODS[method].serial else 4
    (note,) = notes(made(method=method, workers=workers, smoothness=2e5))
    assert "about L/(λn)=2e+03 passes" in note
    assert "scale the columns" in note
    assert not notes(made(method=method, workers=workers))
    assert not notes(made(method=method, workers=workers, smoothness=2e5, dual_width=3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 64}, "dis_dfsdca has no use for batch=64"),
        ({"inner": 9, "pretrain": 1.0}, "dis_dfsdca has no use for inner=9, pretrain=1.0"),
        ({"method": "asysvrg", "local_steps": 9}, "asysvrg has no use for local_steps=9"),
        ({"method": "asysgd", "inner": 9}, "asysgd has no use for inner=9"),
        ({"workers": 1, "delta": 5}, "dis_dfsdca with one worker has no use for delta=5"),
        ({"method": "cocoa_plus", "delta": 5}, "cocoa_plus has no use for delta=5"),
        ({"method": "asysvrg", "batch": 300}, "batch=300 is more than the 250 rows of a worker"),
    ],
)
def test_a_setting_that_changes_nothing_is_a_note(changes, words):
    (note,) = unused(made(**changes))
    assert words in note
    assert note in notes(made(**changes))


def test_settings_that_are_used_are_no_note():
    assert not unused(made(delta=9, local_steps=9))
    assert not unused(made(method="sgd_svrg", batch=9, inner=9, pretrain=2.0))


@pytest.mark.parametrize("nonzero", [0, 3, 2500, 3900])
def test_a_message_is_sparse_where_that_is_smaller_and_says_the_same(nonzero):
    vector = np.zeros(4000)
    vector[:nonzero] = np.arange(1.0, nonzero + 1)
    for given in (vector, (np.arange(nonzero), vector[:nonzero])):
        message = as_message(given, 4000)
        assert len(message) == (2 if nonzero < 2600 else 1)
        target = np.ones(4000)
        add_message(message, -0.5, target)
        np.testing.assert_array_equal(target, 1 - 0.5 * vector)
    assert len(as_message(np.zeros(30), 30)) == 1


def test_the_papers_stragglers_are_slow_one_time_in_five_by_up_to_ten():
    straggler = parse("paper", seed=3)
    delays = np.array([straggler.delay_s(0, message, 1.0) for message in range(4000)])
    assert (delays > 0).mean() == pytest.approx(0.2, abs=0.02)
    assert delays[delays > 0].mean() == pytest.approx(5.0, abs=0.3)
    assert delays.max() < 10.0
    assert not np.array_equal(delays[:50], [straggler.delay_s(1, m, 1.0) for m in range(50)])


def test_stragglers_add_up_and_say_who_dies_and_who_is_late():
    straggler = parse("slow:worker=1,times=3 + dies:worker=2,message=7 + late:worker=0,seconds=2.5")
    assert [straggler.delay_s(worker, 0, 2.0) for worker in range(3)] == [0.0, 6.0, 0.0]
    assert straggler.dies(2, 7)
    assert not straggler.dies(2, 8)
    assert not straggler.dies(1, 7)
    assert [straggler.late_s(worker) for worker in range(2)] == [2.5, 0.0]
    assert parse("none").delay_s(0, 0, 1.0) == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lazy", "a straggler must be one of none, paper"),
        ("paper:q=1", "the options of straggler paper are p, times"),
        ("none:seed=1", "the options of straggler none are none"),
        ("paper:p=often", "p of straggler paper must be a number"),
        ("paper:p=1.5", "at most 1"),
        ("slow:times=-1", "at least 0"),
        ("heavy:shape=0", "above 0"),
        ("slow:worker=0.5", "worker of straggler slow must be a number"),
    ],
)
def test_a_straggler_that_cannot_be_is_refused_with_the_rule(text, words):
    with pytest.raises(ConfigError, match=words):
        parse(text)


# ------------------------------------------------------------------ virtual time


def test_a_straggler_is_one_of_the_workers_unless_there_is_only_one():
    check_workers(parse("paper+slow:worker=3"), 4)
    check_workers(parse("slow:worker=3"), 1)
    for text in ("slow:worker=99", "paper+dies:worker=4", "late:worker=4"):
        with pytest.raises(ConfigError, match="must be 0 to 3, one of workers=4, but got"):
            check_workers(parse(text), 4)


def test_a_death_that_a_run_has_outlived_does_not_come_again():
    straggler = parse("paper+dies:worker=1,message=5+dies:worker=1,message=9+dies:worker=0")
    after = outlived(straggler, 1)
    assert not after.dies(1, 5)
    assert after.dies(1, 9)
    assert after.dies(0, 5)
    assert after.delay_s(0, 3, 1.0) == straggler.delay_s(0, 3, 1.0)
    assert outlived(parse("dies:worker=1"), 1).late_s(1) == 0.0
    paper = parse("paper")
    assert outlived(paper, 1) is paper


def test_virtual_time_is_that_of_computation_delay_and_link():
    (objective,) = objectives = linear_objectives(linear(n=40), 1)
    settings = settings_for("dis_dfsdca", objectives, local_steps=4)
    timing = Timing(sample_s=1e-2, latency_s=1e-3, bytes_per_s=1e5, apply_s=5e-3)
    found = simulate(
        settings, objectives, straggler="slow:times=2", timing=timing, ends=Ends(messages=3)
    )
    down, up = 8 * (objective.dim + 1) / 1e5, 8 * objective.dim / 1e5
    each = 2 * 1e-3 + 3 * 4e-2 + down + up + 5e-3
    times = [applied.time_s for applied in found.trace]
    assert times == pytest.approx([each * (i + 1) - 5e-3 for i in range(3)])
    assert found.figures["epoch"] == pytest.approx(0.3)
    assert found.figures["bytes"] > 0


def test_a_simulation_that_cannot_be_is_refused():
    objectives = linear_objectives(linear(), 2)
    settings = settings_for("dis_dfsdca", objectives)
    with pytest.raises(ConfigError, match="must end by samples or messages"):
        simulate(settings, objectives, ends=Ends(tolerance=1e-3))
    with pytest.raises(ConfigError, match="every worker needs an objective"):
        simulate(settings, objectives[:1], ends=Ends(messages=1))
    with pytest.raises(ConfigError, match="latency_s must not be negative"):
        Timing(latency_s=-1.0)
    with pytest.raises(ConfigError, match="bytes_per_s must be above 0"):
        Timing(bytes_per_s=0.0)
