"""When a simulated run arrives, seen by somebody who asks no worker: benchmarks/arrival.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.server.ends import Ends
from benchmarks.arrival import Goal, arrival
from benchmarks.stragglers import Place, objectives_of, settings_of
from raylab.algorithms.server.rule_factory import auto_eta, server_rule, worker_rule
from raylab.algorithms.server.stragglers import parse
from raylab.data import open_rows
from raylab.problems import build, shards
from raylab.simulator import Timing, run_rules, simulate

pytestmark = pytest.mark.unit

TIMING = Timing(sample_s=1e-4, latency_s=1e-4)
SLOW = parse("paper", 3)


def problem(method, workers=3, **options):
    source = open_rows("sparse:n=300,d=15,density=0.4")
    objectives = [build("ridge", source, shard, strength=0.1) for shard in shards(300, workers)]
    settings = settings_of(method, objectives, **options)
    return settings, objectives


def with_auto_eta(method, **options):
    settings, _ = problem(method, **options)
    return problem(method, eta=auto_eta(settings), **options)


def certified(settings, objectives, tolerance):
    """Return the first certificate that reaches the tolerance, of many, and the last above it."""
    ends = Ends(
        samples=60 * settings.n, tolerance=tolerance, figure="duality_gap", certify_samples=1
    )
    rows = simulate(settings, objectives, straggler=SLOW, timing=TIMING, ends=ends).rows
    assert rows[-1]["duality_gap"] <= tolerance
    return rows[-1], rows[-2]


def test_rounds_arrive_with_the_certificate_that_says_so():
    settings, objectives = problem("cocoa_plus", local_steps=20)
    reached, before = certified(settings, objectives, 1e-6)
    found = arrival(settings, objectives, Goal(tolerance=1e-6), TIMING, SLOW)
    assert before["messages"] < found.messages == reached["messages"]
    assert found.time_s <= reached["time_s"] <= found.time_s + 1e-3  # a reply's way


def test_nobody_waits_for_the_slowest_to_see_an_asynchronous_arrival():
    settings, objectives = with_auto_eta("dis_dfsdca")
    reached, _ = certified(settings, objectives, 1e-6)
    found = arrival(settings, objectives, Goal(tolerance=1e-6), TIMING, SLOW)
    assert 0.8 * reached["time_s"] < found.time_s < 1.02 * reached["time_s"]
    again = arrival(settings, objectives, Goal(tolerance=1e-6), TIMING, SLOW)
    assert found == again


def test_a_goal_that_is_too_far_and_a_time_that_is_too_late_are_no_arrival():
    settings, objectives = with_auto_eta("dis_dfsdca")
    goal = Goal(tolerance=1e-6)
    found = arrival(settings, objectives, goal, TIMING, SLOW)
    too_late = arrival(settings, objectives, goal, TIMING, SLOW, before_s=found.time_s / 2)
    assert too_late.time_s == math.inf
    few = Goal(tolerance=1e-6, epochs=found.epochs / 2)
    assert arrival(settings, objectives, few, TIMING, SLOW).time_s == math.inf
    diverging, objectives = problem("dis_dfsdca", eta=100 * settings.eta)
    assert arrival(diverging, objectives, goal, TIMING, SLOW).time_s == math.inf


def test_a_simulation_ends_where_its_watcher_has_seen_enough():
    settings, objectives = with_auto_eta("dis_dfsdca")
    seen = []

    def enough(one):
        seen.append(one)
        return len(seen) == 5

    found = run_rules(
        server_rule(settings, np.zeros(settings.dim)),
        lambda k: worker_rule(settings, objectives[k], k),
        settings.workers,
        Ends(samples=60 * settings.n),
        until=enough,
    )
    assert found.ended_by == "asked"
    assert found.trace == seen
    assert np.any(found.weights)


def test_results_that_are_there_are_not_computed_again(tmp_path):
    objectives = objectives_of("sparse:n=300,d=15,density=0.4", "ridge", 2, 0.1, tmp_path)
    asked = []

    def once():
        asked.append(1)
        return objectives

    def place(draws):
        return Place(
            folder=tmp_path / "out", objectives=once, goal=lambda: Goal(tolerance=1e-3),
            timing=TIMING, draws=draws,
        )  # fmt: skip

    place(2).fill("cocoa_plus")
    first = place(2).best()
    place(2).fill("cocoa_plus")
    assert len(asked) == 1
    tuned = (tmp_path / "out" / "tuned.json").stat().st_mtime_ns
    place(3).fill("cocoa_plus")
    assert len(asked) == 2
    assert (tmp_path / "out" / "tuned.json").stat().st_mtime_ns == tuned
    assert first is not None
    assert place(3).best()[3] == 3
