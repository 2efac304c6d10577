"""The computation of one stage: draws, buffers, versions of the weights, gradients."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.protocols import Unit
from raylab.algorithms.delayed_stage import DelayedStage
from raylab.algorithms.stage_settings import StageSettings, draw_key
from raylab.errors import ModelError, NonFiniteLossError
from raylab.optimizers import Schedule, make_optimizer

pytestmark = pytest.mark.unit

SGD = functools.partial(torch.optim.SGD, lr=1.0)
VERSIONS = ("forward", "current")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def fixed(*blocks: nn.Module, seed: int = 0) -> nn.Sequential:
    """The blocks in double precision, with weights that depend on the seed alone."""
    module = nn.Sequential(*blocks).double()
    generator = seeded(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def make(
    module: nn.Module,
    *,
    optimizer: Any = SGD,
    schedule: Any = None,
    loss_fn: Any = None,
    **settings: Any,
) -> DelayedStage:
    """A middle stage of three, one batch late, unless told otherwise."""
    numbers = StageSettings(**{"stage": 1, "stages": 3, "delay": 1, **settings})
    return DelayedStage(module, numbers, optimizer=optimizer, schedule=schedule, loss_fn=loss_fn)


def last(module: nn.Module, loss_fn: Any = F.cross_entropy, **settings: Any) -> DelayedStage:
    return make(module, loss_fn=loss_fn, **{"stage": 2, "delay": 0, **settings})


def grads(stage: DelayedStage) -> dict[str, Tensor | None]:
    return {
        name: None if p.grad is None else p.grad.clone()
        for name, p in stage.blocks.module.named_parameters()
    }


def true_gradients(
    module: nn.Module, x: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """torch's own output, gradient at the input, and gradients at the weights."""
    module = copy.deepcopy(module)
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(g)
    return y.detach(), x.grad, {name: p.grad for name, p in module.named_parameters()}


def mean_loss(scores: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(scores.detach(), labels))


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


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


# ----------------------------------------------------------------- which parameters move

WAYS = [
    {"delay": 0},
    {"delay": None, "flush": True},
    {"weight_version": "forward"},
    {"weight_version": "current"},
    {"replay": True},
]
DECAY = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)


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
    ("settings", "graphs", "versions"),
    [
        ({}, 3, 3),
        ({"weight_version": "current"}, 3, 0),
        ({"weight_version": "current", "resumable": True}, 3, 3),
        ({"recompute": True}, 1, 3),
        ({"replay": True}, 1, 0),
    ],
)
def test_bytes_in_flight_are_those_of_open_batches_and_of_the_weights_that_they_keep(
    settings, graphs, versions
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
    assert row["version_bytes_peak"] == (of_weights if versions else 0)


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
    units = [Unit(0, 0, 2, 3 / 5), Unit(0, 1, 2, 2 / 5)]
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
