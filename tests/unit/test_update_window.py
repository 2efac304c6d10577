"""What a stage trains: which parameters move, by which gradients, how far."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actors.units import Unit
from raylab.algorithms.stage.delayed_stage import DelayedStage
from raylab.optimizers import Schedule, make_optimizer
from tests.stages import DECAY, WAYS, assert_close, fixed, grads, make, normal, true_gradients

pytestmark = pytest.mark.unit


# ----------------------------------------------------------------- which parameters move


def three_batches(stage: DelayedStage, x: Tensor, g: Tensor) -> None:
    for n in range(3):
        stage.forward(Unit(n), (x,), ())
        stage.backward(Unit(n), (g,))
        stage.update()


@pytest.mark.parametrize("way", WAYS)
def test_frozen_parameters_never_move(way):
    module = fixed(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    module[1].bias.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    stage = make(module, optimizer=DECAY, clip_norm=10.0, clip_value=10.0, **way)
    stage.update()
    three_batches(stage, normal(5, 3), normal(5, 2))
    after = stage.state()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["1.bias"], before["1.bias"])
    assert not torch.equal(after["0.bias"], before["0.bias"])
    assert not torch.equal(after["1.weight"], before["1.weight"])
    assert not stage.blocks.module[0].weight.requires_grad


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_stage_with_nothing_to_train_passes_gradients_through(way, frozen):
    module = fixed(nn.Linear(3, 3), nn.Tanh()) if frozen else fixed(nn.Tanh())
    module.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    schedule = Schedule(warmup_epochs=1).bind(4)
    stage = make(module, schedule=schedule, **way)
    stage.update()
    x, g = normal(4, 3), normal(4, 3, seed=1)
    y, at_x, _ = true_gradients(module, x, g)
    assert_close(stage.forward(Unit(0), (x,), ()), (y,))
    assert_close(stage.backward(Unit(0), (g,)), (at_x,))
    stage.update()
    assert_close(stage.state(), dict(before))
    row = stage.report()
    assert (row["updates"], row["gradients"]) == (2, 1)
    assert "learning_rate" not in row


class Spare(nn.Module):
    """A weight that is not used, so that it never has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@pytest.mark.parametrize("clip", [{"clip_norm": 1.0}, {"clip_value": 1.0}])
@pytest.mark.parametrize("block", [nn.Tanh(), Spare()], ids=lambda b: type(b).__name__)
def test_clipping_asks_nothing_of_a_stage_without_gradients(block, clip):
    stage = make(nn.Sequential(copy.deepcopy(block)), **clip)
    stage.forward(Unit(0), (normal(4, 3),), ())
    stage.backward(Unit(0), (normal(4, 3),))
    stage.update()
    assert stage.window.updates == 1


def test_a_first_stage_with_nothing_to_train_needs_no_gradient():
    stage = make(fixed(nn.Flatten(), nn.Tanh()), stage=0)
    stage.forward(Unit(0), (normal(4, 3),), ())
    assert stage.backward(Unit(0), (normal(4, 3),)) == (None,)
    stage.update()


@pytest.mark.parametrize("way", WAYS)
def test_weights_shared_within_a_stage_get_the_gradient_of_both_places(way):
    module = fixed(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    x, g = normal(4, 3), normal(4, 3, seed=1)
    _, at_x, at_w = true_gradients(module, x, g)
    stage = make(module, **way)
    stage.forward(Unit(0), (x,), ())
    assert_close(stage.backward(Unit(0), (g,)), (at_x,))
    assert_close(grads(stage), at_w)


# ----------------------------------------------------------------- gradients in one memory


class Adds(nn.Module):
    """x + p of one shape: the gradient at both is the very tensor that came from above."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(*shape, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.p


class AddsParts(nn.Module):
    """x + [q; p]: the gradients at q and p are pieces of the one at x."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
        self.p = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat([self.q, self.p])


class AddsTwice(nn.Module):
    """x + p + q: two parameters whose gradients are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
        self.p = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.p + self.q


class AddsProduct(AddsTwice):
    """x + 2 (p + q): the gradients at p and q are one tensor, but not the one at x."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 2 * (self.p + self.q)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "block", [Adds(4, 3), AddsParts(), AddsTwice(), AddsProduct()], ids=lambda b: type(b).__name__
)
def test_a_gradient_that_is_sent_on_and_kept_stays_right_in_both_places(block, way):
    block = copy.deepcopy(block)
    stage = make(nn.Sequential(block), accumulate=2, **way)
    x = normal(4, 3)
    given = [normal(4, 3, seed=n) for n in (1, 2)]
    kept = [g.clone() for g in given]
    for n in range(2):
        stage.forward(Unit(n), (x,), ())
    sent = [stage.backward(Unit(n), (given[n],))[0] for n in range(2)]
    stage.update()
    for n in range(2):
        assert torch.equal(sent[n], kept[n])
    mean = (kept[0] + kept[1]) / 2
    state = stage.state()
    if isinstance(block, AddsParts):
        assert_close(state, {"0.q": -mean[:2], "0.p": -mean[2:]})
    else:
        factor = 2 if isinstance(block, AddsProduct) else 1
        assert_close(state, dict.fromkeys(state, -factor * mean))


def test_a_gradient_of_one_number_spread_over_many_can_be_scaled():
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.zeros(4, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.p.sum()

    stage = make(nn.Sequential(Sums()), accumulate=2)
    for n in range(2):
        stage.forward(Unit(n), (normal(1, 1),), ())
    for n in range(2):
        stage.backward(Unit(n), (torch.full((1, 1), 3.0 + n, dtype=torch.float64),))
    stage.update()
    assert_close(stage.state()["0.p"], torch.full((4,), -3.5, dtype=torch.float64))


def test_a_sparse_gradient_is_accumulated_like_any_other():
    module = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    before = module[0].weight.detach().clone()
    stage = make(module, stage=0, accumulate=2)
    for n in range(2):
        stage.forward(Unit(n), (torch.tensor([1, 2]),), ())
    for n in range(2):
        stage.backward(Unit(n), (torch.ones(2, 3),))
    stage.update()
    moved = before - stage.state()["0.weight"]
    assert_close(moved, torch.tensor([0.0, 1, 1, 0, 0])[:, None].expand(5, 3))


# ----------------------------------------------------------------- updates


def test_an_update_before_the_first_gradient_is_a_step_with_zero():
    module = fixed(nn.Linear(3, 2))
    before = copy.deepcopy(module.state_dict())
    stage = make(module, optimizer=functools.partial(torch.optim.SGD, lr=0.5, weight_decay=0.1))
    stage.update()
    assert_close(stage.state(), {name: t * 0.95 for name, t in before.items()})
    row = stage.report()
    assert (row["updates"], row["gradients"], row["staleness_max"]) == (1, 0, 0)


def test_a_later_update_without_a_gradient_is_a_step_with_zero_too():
    module = fixed(nn.Linear(3, 2))
    stage = make(module, optimizer=functools.partial(torch.optim.SGD, lr=0.5, weight_decay=0.1))
    stage.forward(Unit(0), (normal(4, 3),), ())
    stage.backward(Unit(0), (normal(4, 2),))
    stage.update()
    before = stage.state()
    stage.update()
    assert_close(stage.state(), {name: t * 0.95 for name, t in before.items()})


def test_adam_counts_the_steps_before_the_first_gradient():
    stage = make(fixed(nn.Linear(3, 2)), optimizer=make_optimizer("adam", 0.1))
    stage.update()
    stage.update()
    stage.forward(Unit(0), (normal(4, 3),), ())
    stage.backward(Unit(0), (normal(4, 2),))
    before = stage.state()
    _, _, at_w = true_gradients(stage.blocks.module, normal(4, 3), normal(4, 2))
    stage.update()
    for name, g in at_w.items():
        first, second = 0.1 * g / (1 - 0.9**3), 0.001 * g**2 / (1 - 0.999**3)
        assert_close(stage.state()[name], before[name] - 0.1 * first / (second.sqrt() + 1e-8))


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_a_window_that_is_only_part_full_is_divided_by_the_same_m(batches):
    module = fixed(nn.Linear(3, 2))
    before = copy.deepcopy(module.state_dict())
    stage = make(module, accumulate=4, delay=0)
    expected = {name: torch.zeros_like(t) for name, t in before.items()}
    for n in range(batches):
        x, g = normal(4, 3, seed=n), normal(4, 2, seed=n + 10)
        _, _, at_w = true_gradients(module, x, g)
        stage.forward(Unit(n), (x,), ())
        stage.backward(Unit(n), (g,))
        expected = {name: expected[name] + at_w[name] / 4 for name in expected}
    stage.update()
    assert_close(stage.state(), {name: before[name] - expected[name] for name in before})


def one_step(**settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The step of a window of two batches, and the mean gradient of the window."""
    module = fixed(nn.Linear(3, 2))
    before = copy.deepcopy(module.state_dict())
    x, g = normal(4, 3), [normal(4, 2, seed=n) for n in (1, 2)]
    pairs = [true_gradients(module, x, each)[2] for each in g]
    stage = make(module, accumulate=2, **settings)
    for n in range(2):
        stage.forward(Unit(n), (x,), ())
        stage.backward(Unit(n), (g[n],))
    stage.update()
    after = stage.state()
    step = {name: before[name] - after[name] for name in before}
    return step, {name: (pairs[0][name] + pairs[1][name]) / 2 for name in before}


def length(gradient: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((t**2).sum()) for t in gradient.values()))


def test_a_norm_is_clipped_over_all_weights_of_the_mean_gradient():
    step, mean = one_step(clip_norm=0.5)
    assert length(mean) > 0.5
    factor = 0.5 / (length(mean) + 1e-6)
    assert_close(step, {name: t * factor for name, t in mean.items()})


def test_a_norm_within_the_limit_is_left_alone():
    _, mean = one_step()
    step, _ = one_step(clip_norm=1.01 * length(mean), clip_value=100.0)
    assert_close(step, mean)


def test_values_are_clipped_one_by_one_after_the_mean():
    step, mean = one_step(clip_value=0.3)
    assert max(float(t.abs().max()) for t in mean.values()) > 0.3
    assert_close(step, {name: t.clamp(-0.3, 0.3) for name, t in mean.items()})


def test_the_norm_is_clipped_before_the_values():
    step, mean = one_step(clip_norm=0.5, clip_value=0.2)
    factor = 0.5 / (length(mean) + 1e-6)
    assert_close(step, {name: (t * factor).clamp(-0.2, 0.2) for name, t in mean.items()})


def test_the_reported_rate_is_that_of_the_next_update():
    schedule = Schedule(warmup_epochs=1).bind(4)
    stage = make(fixed(nn.Linear(3, 2)), optimizer=make_optimizer("sgd", 0.8), schedule=schedule)
    rates = []
    for _ in range(4):
        rates.append(stage.report()["learning_rate"])
        stage.update()
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8])
