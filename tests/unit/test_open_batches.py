"""Batches between forward and backward: what is kept of them, and which weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from actors.units import Unit
from raylab.optimizers import make_optimizer
from tests.stages import DECAY, SGD, assert_close, fixed, grads, make, normal, true_gradients

pytestmark = pytest.mark.unit


def test_staleness_is_counted_in_updates_once_a_batch():
    stage = make(fixed(nn.Linear(3, 2)), delay=2)
    x, g = normal(4, 3), normal(4, 2)
    for n in range(5):
        stage.forward(Unit(n), (x,), ())
        if n >= 2:
            stage.backward(Unit(n - 2), (g,))
        stage.update()
    row = stage.report()
    assert (row["updates"], row["gradients"]) == (5, 3)
    assert (row["staleness_sum"], row["staleness_max"]) == (6, 2)
    assert row["staleness_counts"] == [0, 0, 3]
    assert (row["graphs_peak"], row["inputs_peak"]) == (3, 3)
    assert stage.report()["gradients"] == 0


def test_a_replay_keeps_inputs_and_at_most_one_graph():
    stage = make(fixed(nn.Linear(3, 2)), delay=2, replay=True)
    x, g = normal(4, 3), normal(4, 2)
    for n in range(5):
        stage.forward(Unit(n), (x,), ())
        if n >= 2:
            stage.backward(Unit(n - 2), (g,))
        stage.update()
    row = stage.report()
    assert (row["graphs_peak"], row["inputs_peak"]) == (1, 3)


@pytest.mark.parametrize(
    ("settings", "graphs", "versions", "of_now"),
    [
        # The weights of now are the parameters themselves; copies of old ones are two.
        ({}, 3, 2, 0),
        ({"weight_version": "current"}, 3, 0, 0),
        ({"weight_version": "current", "resumable": True}, 3, 3, 1),
        ({"recompute": True}, 1, 2, 0),
        ({"replay": True}, 1, 0, 0),
    ],
)
def test_bytes_in_flight_are_those_of_open_batches_and_of_the_weights_that_they_keep(
    settings, graphs, versions, of_now
):
    stage = make(fixed(nn.Linear(3, 2), nn.Tanh()), delay=2, **settings)
    x, g = normal(4, 3), normal(4, 2)
    of_input, of_graph, of_weights = 8 * 4 * 3, 8 * 4 * 2, 8 * (2 * 3 + 2)
    for n in range(5):
        stage.forward(Unit(n), (x,), ())
        if n >= 2:
            stage.backward(Unit(n - 2), (g,))
        stage.update()
    row = stage.report()
    assert row["activation_bytes_peak"] == 3 * of_input + graphs * of_graph
    assert row["version_bytes_peak"] == versions * of_weights
    for n in (3, 4):
        stage.backward(Unit(n), (g,))
    stage.report()
    stage.forward(Unit(5), (x,), ())
    row = stage.report()
    assert row["activation_bytes_peak"] == of_input + (of_graph if graphs == 3 else 0)
    assert row["version_bytes_peak"] == of_now * of_weights


# ----------------------------------------------------------------- versions of the weights


def deep_convolution() -> nn.Sequential:
    return fixed(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3, bias=False))


def step_in_between(module: nn.Sequential, **settings: Any) -> tuple[Any, ...]:
    """Forward batch 1, step with batch 0, then back-propagate batch 1."""
    stage = make(module, **settings)
    old = copy.deepcopy(module)
    x, g = (
        [normal(2, 2, 7, 7, seed=n) for n in (1, 2)],
        [normal(2, 2, 3, 3, seed=n) for n in (3, 4)],
    )
    stage.forward(Unit(0), (x[0],), ())
    stage.forward(Unit(1), (x[1],), ())
    stage.backward(Unit(0), (g[0],))
    stage.update()
    new = copy.deepcopy(module)
    assert not torch.equal(old[0].weight, new[0].weight)
    (at_x,) = stage.backward(Unit(1), (g[1],))
    return at_x, grads(stage), true_gradients(old, x[1], g[1]), true_gradients(new, x[1], g[1])


@pytest.mark.parametrize("optimizer", [SGD, DECAY, make_optimizer("adam", 0.1)])
def test_a_late_gradient_of_a_convolution_is_that_of_the_old_weights(optimizer):
    at_x, at_w, (_, old_x, old_w), (_, new_x, _) = step_in_between(
        deep_convolution(), optimizer=optimizer
    )
    assert_close(at_x, old_x)
    assert_close(at_w, old_w)
    assert not torch.allclose(old_x, new_x)


@pytest.mark.parametrize("optimizer", [SGD, DECAY, make_optimizer("adam", 0.1)])
def test_a_late_gradient_at_current_weights_differs_and_raises_nothing(optimizer):
    at_x, at_w, (_, old_x, old_w), _ = step_in_between(
        deep_convolution(), optimizer=optimizer, weight_version="current"
    )
    assert not torch.allclose(at_x, old_x)
    assert not torch.allclose(at_w["0.weight"], old_w["0.weight"])
    # The last convolution's own gradient has activations only, which are those of the forward.
    assert_close(at_w["2.weight"], old_w["2.weight"])


def test_the_current_weights_are_read_where_the_gradient_is_linear_in_them():
    at_x, _, (_, old_x, _), (_, new_x, _) = step_in_between(
        fixed(nn.Conv2d(2, 2, 5, bias=False)), weight_version="current"
    )
    assert_close(at_x, new_x)
    assert not torch.allclose(at_x, old_x)


def test_a_replay_is_the_gradient_of_the_new_weights():
    at_x, at_w, _, (_, new_x, new_w) = step_in_between(deep_convolution(), replay=True)
    assert_close(at_x, new_x)
    assert_close(at_w, new_w)


def test_features_are_those_of_the_weights_at_their_forward():
    stage = make(deep_convolution())
    x, g = normal(2, 2, 7, 7), normal(2, 2, 3, 3)
    for n in range(3):
        expected = copy.deepcopy(stage.blocks.module)(x).detach()
        (features,) = stage.forward(Unit(n), (x,), ())
        assert_close(features, expected)
        stage.backward(Unit(n), (g,))
        stage.update()
        assert_close(features, expected)
