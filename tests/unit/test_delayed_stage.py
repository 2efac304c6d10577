"""A stage as a whole: its loss, its precision, its timing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from actors.units import Unit
from raylab.errors import ModelError, NonFiniteLossError
from tests.stages import WAYS, assert_close, fixed, grads, last, make, mean_loss, normal

pytestmark = pytest.mark.unit


# ----------------------------------------------------------------- the loss


def classifier() -> nn.Sequential:
    return fixed(nn.Linear(3, 2))


LABELS = torch.tensor([0, 1, 0, 1, 1])


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (math.inf, "nan"), (None, "inf")])
def test_a_loss_that_is_not_finite_names_the_batch_and_ways_out(value, said):
    x = normal(5, 3)
    loss_fn = F.cross_entropy
    if value is None:
        loss_fn = lambda out, y: out.sum() * 0 + math.inf  # noqa: E731
    else:
        x[2, 1] = value
    stage = last(classifier(), loss_fn=loss_fn)
    expected = rf"must be finite, but batch 7 gave {said}: lower the learning rate, .*clip"
    with pytest.raises(NonFiniteLossError, match=expected):
        stage.forward(Unit(7), (x,), (LABELS,))


def test_the_last_stage_sends_no_features_and_returns_the_gradient_of_the_loss():
    module = classifier()
    x = normal(5, 3)
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(copy.deepcopy(module)(leaf), LABELS)
    loss.backward()
    stage = last(module)
    assert stage.forward(Unit(0), (x,), (LABELS,)) == ()
    assert_close(stage.backward(Unit(0), ()), (leaf.grad,))
    assert stage.report()["loss"] == pytest.approx(mean_loss(copy.deepcopy(module)(x), LABELS))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_micro_batches_add_up_to_the_batch(reduction):
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    x = normal(5, 3)
    whole = last(classifier(), loss_fn=loss_fn)
    whole.forward(Unit(0), (x,), (LABELS,))
    (at_x,) = whole.backward(Unit(0), ())
    parts = last(classifier(), loss_fn=loss_fn, delay=None, flush=True)
    units = [Unit(0, 0, 2, 3 / 5, 3 / 5), Unit(0, 1, 2, 2 / 5, 2 / 5)]
    for unit, piece in zip(units, (slice(0, 3), slice(3, 5)), strict=True):
        parts.forward(unit, (x[piece],), (LABELS[piece],))
    found = torch.cat([parts.backward(unit, ())[0] for unit in units])
    assert_close(found, at_x)
    assert_close(grads(parts), grads(whole))
    one, other = whole.report(), parts.report()
    assert other["loss"] == pytest.approx(one["loss"])
    assert (other["samples"], other["accuracy"]) == (5, one["accuracy"])
    scores = classifier()(x)
    # A loss is reported as a mean over samples, whatever the loss function returns.
    assert one["loss"] == pytest.approx(mean_loss(scores, LABELS))


def test_the_last_stage_needs_a_loss():
    stage = last(classifier(), loss_fn=None)
    with pytest.raises(ModelError, match="must be given a loss function, but got None"):
        stage.forward(Unit(0), (normal(5, 3),), (LABELS,))


# ----------------------------------------------------------------- precision and timing


@pytest.mark.parametrize("way", WAYS)
def test_under_bfloat16_features_are_half_as_long_and_weights_stay(way):
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    stage = make(module, precision="bfloat16", **way)
    x = normal(5, 6).bfloat16()
    (features,) = stage.forward(Unit(0), (x,), ())
    assert features.dtype == torch.bfloat16
    (sent,) = stage.backward(Unit(0), (torch.ones_like(features),))
    assert sent.dtype == torch.bfloat16
    assert bool(sent.isfinite().all())
    for gradient in grads(stage).values():
        assert gradient.dtype == torch.float32
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any())
    stage.update()
    assert {t.dtype for t in stage.state().values()} == {torch.float32}


def test_the_loss_under_bfloat16_is_computed_in_full():
    module = nn.Sequential(nn.Linear(3, 2))
    stage = last(module, precision="bfloat16")
    x = normal(5, 3).float()
    stage.forward(Unit(0), (x,), (LABELS,))
    (sent,) = stage.backward(Unit(0), ())
    assert sent.dtype == torch.float32
    full = mean_loss(module(x), LABELS)
    assert stage.report()["loss"] == pytest.approx(full, rel=0.02)


def timed() -> nn.Sequential:
    return fixed(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


@pytest.mark.parametrize("way", WAYS)
def test_timing_leaves_no_trace_in_a_stage(way):
    x, g = normal(8, 3), normal(8, 2)
    stage, twin = make(timed(), **way), make(timed(), **way)
    before, kept = stage.state(), x.clone()
    measured = stage.measure((x,), 3)
    assert len(measured) == 3
    assert all(forward > 0 and backward > 0 for forward, backward in measured)
    assert_close(stage.state(), before)
    assert torch.equal(x, kept)
    assert stage.report() == twin.report()
    assert all(gradient is None for gradient in grads(stage).values())
    for n in range(2):
        for each in (stage, twin):
            each.forward(Unit(n), (x,), ())
            each.backward(Unit(n), (g,))
            each.update()
        stage.measure((x,), 1)
    assert all(torch.equal(t, twin.state()[name]) for name, t in stage.state().items())


@pytest.mark.parametrize("stage_number", [0, 1])
def test_timing_works_where_the_first_block_writes_into_its_input(stage_number):
    module = fixed(nn.ReLU(inplace=True), nn.Linear(3, 2))
    stage = make(module, stage=stage_number, protect_inputs=True)
    x = normal(8, 3)
    kept = x.clone()
    assert len(stage.measure((x,), 2)) == 2
    assert torch.equal(x, kept)


def test_timing_works_for_the_last_stage_and_for_one_without_weights():
    assert len(last(classifier()).measure((normal(5, 3),), 2)) == 2
    assert len(make(fixed(nn.Tanh()), stage=0).measure((normal(5, 3),), 2)) == 2


def test_a_state_is_a_copy():
    stage = make(fixed(nn.Linear(3, 2)))
    state = stage.state()
    for tensor in state.values():
        tensor.zero_()
    assert bool(stage.blocks.module[0].weight.any())
