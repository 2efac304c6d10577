"""The blocks of a stage: draws, running statistics, what comes in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actors.units import Unit
from raylab.algorithms.stage.delayed_stage import DelayedStage
from raylab.algorithms.stage.settings import draw_key
from raylab.errors import ModelError
from tests.stages import (
    VERSIONS,
    assert_close,
    fixed,
    grads,
    last,
    make,
    mean_loss,
    normal,
    true_gradients,
)

pytestmark = pytest.mark.unit


# ----------------------------------------------------------------- draws


def test_draw_keys_differ_in_every_part_and_never_change():
    keys = {
        draw_key(seed, stage, batch, part)
        for seed in range(4)
        for stage in range(4)
        for batch in range(40)
        for part in range(4)
    }
    assert len(keys) == 4 * 4 * 40 * 4
    assert draw_key(0, 1, 23, 0) != draw_key(0, 12, 3, 0)
    # A number that is written down: a checkpoint of yesterday must draw the same today.
    assert draw_key(0, 0, 0, 0) == 19_807_660_613_435_754
    assert all(0 <= key < 2**56 for key in keys)


def test_a_replay_draws_what_the_play_drew():
    stage = make(nn.Sequential(nn.Dropout(0.5)), replay=True)
    ones = torch.ones(8, 32)
    played = [stage.forward(Unit(n), (ones,), ())[0] for n in range(2)]
    torch.rand(17)
    # Of a dropout the gradient is the mask itself, as is the output of ones.
    replayed = [stage.backward(Unit(n), (ones,))[0] for n in range(2)]
    assert torch.equal(replayed[0], played[0])
    assert torch.equal(replayed[1], played[1])
    assert not torch.equal(played[0], played[1])
    assert set(played[0].unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("other", [{"seed": 1}, {"stage": 0}])
def test_draws_depend_on_seed_and_stage_and_on_nothing_else(other):
    ones = torch.ones(8, 32)
    dropout = nn.Sequential(nn.Dropout(0.5))

    def drawn(**settings: Any) -> Tensor:
        torch.rand(3)
        return make(dropout, **settings).forward(Unit(5), (ones,), ())[0]

    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), drawn(**other))


def test_micro_batches_draw_different_numbers():
    stage = make(nn.Sequential(nn.Dropout(0.5)), delay=0, flush=True)
    ones = torch.ones(8, 32)
    first, second = (stage.forward(Unit(0, part, 2, 0.5), (ones,), ())[0] for part in range(2))
    assert not torch.equal(first, second)


# ----------------------------------------------------------------- running statistics


def normalising() -> nn.Sequential:
    return fixed(nn.Linear(3, 4), nn.BatchNorm1d(4))


def statistics(stage: DelayedStage) -> dict[str, Tensor]:
    return {n: t for n, t in stage.state().items() if "running" in n or "tracked" in n}


def test_a_play_moves_no_statistics_and_its_replay_moves_them_once():
    expected = normalising()
    stage = make(normalising(), replay=True)
    start = statistics(stage)
    x = normal(8, 3)
    stage.forward(Unit(0), (x,), ())
    stage.forward(Unit(1), (normal(8, 3, seed=1),), ())
    assert_close(statistics(stage), start)
    stage.backward(Unit(0), (normal(8, 4),))
    expected(x)
    assert_close(statistics(stage), {n: t for n, t in expected.state_dict().items() if n in start})
    assert int(statistics(stage)["1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("weight_version", VERSIONS)
def test_a_forward_that_keeps_its_graph_moves_statistics_and_its_backward_does_not(weight_version):
    expected = normalising()
    stage = make(normalising(), weight_version=weight_version)
    x = normal(8, 3)
    stage.forward(Unit(0), (x,), ())
    expected(x)
    moved = statistics(stage)
    assert_close(moved, {n: t for n, t in expected.state_dict().items() if n in moved})
    stage.backward(Unit(0), (normal(8, 4),))
    assert_close(statistics(stage), moved)


@pytest.mark.parametrize("delay", [None, 1])
def test_micro_batches_move_statistics_once_by_the_mean_over_their_samples(delay):
    stage = make(fixed(nn.BatchNorm1d(3, momentum=0.2)), delay=delay, flush=True)
    large, small = normal(6, 3), normal(2, 3, seed=1)
    stage.forward(Unit(0, 0, 2, 0.75), (large,), ())
    start = statistics(stage)
    assert int(start["0.num_batches_tracked"]) == 0
    assert_close(start["0.running_mean"], torch.zeros(3, dtype=torch.float64))
    stage.forward(Unit(0, 1, 2, 0.25), (small,), ())
    moved = statistics(stage)
    mean = 0.75 * large.mean(0) + 0.25 * small.mean(0)
    variance = 0.75 * large.var(0) + 0.25 * small.var(0)
    assert int(moved["0.num_batches_tracked"]) == 1
    assert_close(moved["0.running_mean"], 0.2 * mean)
    assert_close(moved["0.running_var"], 0.8 + 0.2 * variance)


class CountsItsCalls(nn.Module):
    """A buffer that is put in place of the old one, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x * 1


@pytest.mark.parametrize("settings", [{"replay": True}, {}, {"weight_version": "current"}])
def test_a_buffer_that_is_replaced_counts_every_batch_once(settings):
    stage = make(nn.Sequential(CountsItsCalls()), **settings)
    x = torch.ones(2, 3)
    for n in range(4):
        stage.forward(Unit(n), (x,), ())
        if n:
            stage.backward(Unit(n - 1), (x,))
            stage.update()
    stage.backward(Unit(3), (x,))
    assert float(stage.state()["0.calls"]) == 4


def test_a_buffer_that_is_replaced_counts_a_batch_of_micro_batches_once():
    stage = make(nn.Sequential(CountsItsCalls()), delay=None, flush=True)
    for part in range(2):
        stage.forward(Unit(0, part, 2, 0.5), (torch.ones(2, 3),), ())
    assert float(stage.state()["0.calls"]) == 1


def test_a_play_reads_buffers_as_they_are_now_where_they_are_replaced():
    class AddsItsCalls(CountsItsCalls):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0 + self.calls

    stage = make(nn.Sequential(AddsItsCalls()), replay=True)
    x = torch.ones(1, 1)
    stage.forward(Unit(0), (x,), ())
    stage.backward(Unit(0), (x,))
    assert float(stage.forward(Unit(1), (x,), ())[0]) == 2


def test_a_test_batch_reads_statistics_and_moves_nothing():
    module = fixed(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    stage = last(module)
    stage.forward(Unit(0), (normal(8, 3),), (torch.zeros(8, dtype=torch.long),))
    before = stage.state()
    generator = torch.random.get_rng_state()
    x, y = normal(5, 3, seed=2), torch.tensor([0, 1, 0, 1, 1])
    assert stage.evaluate((x,), (y,)) == ()
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert_close(stage.state(), before)
    scores = copy.deepcopy(module).eval()(x)
    row = stage.report()
    assert row["test_samples"] == 5
    assert row["test_loss"] == pytest.approx(mean_loss(scores, y))
    assert row["test_accuracy"] == float((scores.argmax(1) == y).double().mean())
    # Training goes on as before.
    stage.backward(Unit(0), ())
    stage.forward(Unit(1), (x,), (y,))
    assert int(stage.state()["0.num_batches_tracked"]) == 2


# ----------------------------------------------------------------- inputs


@pytest.mark.parametrize("settings", [{"replay": True}, {}, {"weight_version": "current"}])
@pytest.mark.parametrize("stage_number", [0, 1])
def test_a_first_block_that_writes_into_its_input_writes_into_a_copy(settings, stage_number):
    blocks = fixed(nn.ReLU(inplace=True), nn.Linear(3, 2))
    plain = fixed(nn.ReLU(), nn.Linear(3, 2))
    x, g = normal(4, 3), normal(4, 2)
    kept = x.clone()
    stage = make(blocks, stage=stage_number, protect_inputs=True, **settings)
    y, at_x, at_w = true_gradients(plain, x, g)
    (features,) = stage.forward(Unit(0), (x,), ())
    assert torch.equal(x, kept)
    assert_close(features, y)
    (found,) = stage.backward(Unit(0), (g,))
    assert torch.equal(x, kept)
    assert_close(grads(stage), at_w)
    if stage_number == 0:
        assert found is None
    else:
        assert_close(found, at_x)


def test_a_test_batch_is_not_written_into_either():
    stage = make(fixed(nn.ReLU(inplace=True)), protect_inputs=True)
    x = normal(4, 3)
    kept = x.clone()
    stage.evaluate((x,), ())
    assert torch.equal(x, kept)


def test_labels_of_classes_may_cross_a_cut_beside_features():
    class Pair(nn.Module):
        def forward(self, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, classes = given
            return x * 2 + classes[:, None], classes

    stage = make(nn.Sequential(Pair()))
    x, classes = normal(4, 3), torch.arange(4)
    features, passed = stage.forward(Unit(0), (x, classes), ())
    assert torch.equal(passed, classes)
    assert_close(features, x * 2 + classes[:, None])
    g = normal(4, 3, seed=1)
    assert_close(stage.backward(Unit(0), (g, None)), (2 * g, None))


def test_an_input_that_is_not_used_gets_no_gradient():
    class First(nn.Module):
        def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
            return given[0] * 3

    stage = make(nn.Sequential(First()))
    stage.forward(Unit(0), (normal(2, 3), normal(2, 3)), ())
    assert_close(stage.backward(Unit(0), (normal(2, 3),)), (3 * normal(2, 3), None))


def test_complex_features_have_gradients_too():
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(x).flatten(1)

    stage = make(nn.Sequential(Parts()))
    stage.forward(Unit(0), (torch.ones(2, 3, dtype=torch.complex64),), ())
    (found,) = stage.backward(Unit(0), (torch.ones(2, 6),))
    assert found is not None
    assert torch.equal(found, torch.full((2, 3), 1 + 1j))


def test_features_and_gradients_sent_away_have_no_graph():
    stage = make(fixed(nn.Linear(3, 2)))
    (features,) = stage.forward(Unit(0), (normal(4, 3),), ())
    (gradient,) = stage.backward(Unit(0), (normal(4, 2),))
    assert not features.requires_grad
    assert not gradient.requires_grad


@pytest.mark.parametrize("what", [{"x": 1}, (), "text"])
def test_a_block_that_returns_no_tensor_is_an_error(what):
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> object:
            return what

    with pytest.raises(ModelError, match="a block must return a tensor or a tuple of tensors"):
        make(nn.Sequential(Returns())).forward(Unit(0), (torch.ones(2, 3),), ())
