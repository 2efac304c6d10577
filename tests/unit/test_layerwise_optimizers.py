"""NAG, LARS and CLARS, step by step against the formulas of HUO, chapter 4."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from raylab.algorithms.stage.layerwise import LayerwiseOptimizer
from raylab.algorithms.stage.settings import StageSettings
from raylab.algorithms.stage.update_window import UpdateWindow
from raylab.config import pipeline_config
from raylab.drivers.pipeline.plan import optimizer_copies
from raylab.drivers.resolve import resolve
from raylab.errors import ConfigError, ModelError
from raylab.optimizers import (
    CLARS,
    LARS,
    NAG,
    Schedule,
    fully_connected_parameters,
    linear_scaling,
    make_optimizer,
    plain_parameters,
)

pytestmark = pytest.mark.unit

DECAY, BETA = 0.01, 0.8
NUMBERS = {"momentum": BETA, "weight_decay": DECAY}
GAMMAS = [0.3, 0.3, 1.1, 0.7, 0.2, 0.9]


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
        ).double()


def data(steps: int = len(GAMMAS), size: int = 6) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.randn(size, 2, 5, 5, generator=generator, dtype=torch.float64)
        yield x, torch.randint(4, (size,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, gammas: Any = GAMMAS) -> None:
    for gamma, (x, y) in zip(gammas, data(), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = gamma
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def by_formula(
    model: nn.Module,
    rate: Callable[[float, str, Tensor, Tensor, list[Tensor]], Any],
    decayed: Callable[[Tensor], bool] = lambda _: True,
) -> dict[str, Tensor]:
    """(4.2) and (4.6) as they stand, with every sample's gradient by itself.

    `rate` is given gamma, name, w, the mean gradient and the samples' own.
    """
    w = {n: p.detach().clone() for n, p in model.named_parameters()}
    v = dict(w)
    for gamma, (x, y) in zip(GAMMAS, data(), strict=True):
        own: dict[str, list[Tensor]] = {n: [] for n in w}
        for one, label in zip(x.split(1), y.split(1), strict=True):
            leaves = {n: t.clone().requires_grad_() for n, t in w.items()}
            F.cross_entropy(torch.func.functional_call(model, leaves, (one,)), label).backward()
            for n, leaf in leaves.items():
                own[n].append(leaf.grad)
        for n in w:
            g = torch.stack(own[n]).mean(0)
            direction = g + DECAY * w[n] if decayed(w[n]) else g
            v_next = w[n] - rate(gamma, n, w[n], g, own[n]) * direction
            w[n] = v_next + BETA * (v_next - v[n])
            v[n] = v_next
    return w


def assert_weights(model: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-10, atol=1e-13, msg=name)


def is_layer(w: Tensor) -> bool:
    return w.ndim > 1


# ----------------------------------------------------------------- the formulas


def test_nag_is_the_papers_with_changing_rates():
    model = network()
    expected = by_formula(model, lambda gamma, *_: gamma)
    train(model, NAG(model.parameters(), **NUMBERS))
    assert_weights(model, expected)


def test_nag_is_torchs_nesterov_while_the_rate_stays_and_not_when_it_changes():
    for gammas, equal in (([0.3] * 6, True), (GAMMAS, False)):
        ours, theirs = network(), network()
        train(ours, NAG(ours.parameters(), **NUMBERS), gammas)
        train(theirs, torch.optim.SGD(theirs.parameters(), nesterov=True, **NUMBERS), gammas)
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in pairs) is equal


def test_without_momentum_nothing_is_kept():
    model = network()
    optimizer = NAG(model.parameters(), momentum=0.0)
    train(model, optimizer)
    assert not optimizer.state


def test_lars_is_4_3_and_leaves_biases_and_normalisations_the_plain_rate():
    model = network()

    def rate(gamma: float, _: str, w: Tensor, g: Tensor, __: list[Tensor]) -> Any:
        return gamma * 0.02 * w.norm() / (g.norm() + DECAY * w.norm()) if is_layer(w) else gamma

    expected = by_formula(model, rate, is_layer)
    train(model, LARS(model.parameters(), trust=0.02, model=model, **NUMBERS))
    assert_weights(model, expected)


def clars_rate(gamma: float, _: str, w: Tensor, __: Tensor, own: list[Tensor]) -> Any:
    mean = torch.stack([g.norm() for g in own]).mean()
    return gamma * 0.02 * w.norm() / (mean + DECAY * w.norm()) if is_layer(w) else gamma


def test_clars_is_4_7():
    model = network()
    expected = by_formula(model, clars_rate, is_layer)
    train(model, CLARS(model.parameters(), trust=0.02, model=model, **NUMBERS))
    assert_weights(model, expected)


def test_clars_is_4_7_over_all_samples_of_accumulated_micro_batches():
    model = network()
    expected = by_formula(model, clars_rate, is_layer)
    optimizer = CLARS(model.parameters(), trust=0.02, model=model, **NUMBERS)
    for gamma, (x, y) in zip(GAMMAS, data(), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = gamma
        for part, labels in zip(x.split(4), y.split(4), strict=True):
            (F.cross_entropy(model(part), labels) * len(part) / len(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_weights(model, expected)


@pytest.mark.parametrize("samples", [2, 512])
def test_sampled_clars_is_4_4_4(samples):
    model = network()

    def rate(gamma: float, _: str, w: Tensor, g: Tensor, own: list[Tensor]) -> Any:
        if not is_layer(w):
            return gamma
        squares = torch.stack([each.norm().square() for each in own[:samples]]).mean()
        below = g.norm() / (g.norm().square() / squares)
        return gamma * 0.02 * w.norm() / (below + DECAY * w.norm())

    expected = by_formula(model, rate, is_layer)
    optimizer = CLARS(
        model.parameters(), trust=0.02, model=model, estimator="sampled", samples=samples, **NUMBERS
    )
    train(model, optimizer)
    assert_weights(model, expected)


def test_the_figures_are_the_last_rates_and_the_variance_factors_of_4_4_3():
    model = network()
    optimizer = CLARS(model.parameters(), 0.5, trust=0.02, momentum=0.0, model=model)
    ((x, y),) = data(1)
    twin = network()
    gradients = [
        torch.autograd.grad(F.cross_entropy(twin(a), b), twin[4].weight)[0]
        for a, b in zip(x.split(1), y.split(1), strict=True)
    ]
    squares = torch.stack([g.norm().square() for g in gradients]).mean()
    norms = torch.stack([g.norm() for g in gradients]).mean()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    figures = optimizer.layer_figures()
    assert figures["layer_names"] == ["0.weight", "4.weight"]
    rate = float(0.5 * 0.02 * twin[4].weight.detach().norm() / norms)
    variance = float(squares / torch.stack(gradients).mean(0).norm().square())
    assert figures["layer_rates"][1] == pytest.approx(rate, rel=1e-10)
    assert figures["layer_variances"][1] == pytest.approx(variance, rel=1e-10)
    assert all(each >= 1 for each in figures["layer_variances"])


def test_the_rate_of_clars_is_never_above_that_of_lars():
    ours, theirs = network(), network()
    clars = CLARS(ours.parameters(), 0.1, trust=0.02, model=ours)
    lars = LARS(theirs.parameters(), 0.1, trust=0.02, model=theirs)
    ((x, y),) = data(1)
    for model, optimizer in ((ours, clars), (theirs, lars)):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    rates = (clars.layer_figures()["layer_rates"], lars.layer_figures()["layer_rates"])
    assert all(0 < a < b for a, b in zip(*rates, strict=True))


def test_a_layer_of_zeros_moves_and_a_gradient_of_zeros_moves_nothing():
    for kind in (LARS, CLARS):
        layer = nn.Linear(3, 2, bias=False).double()
        optimizer = kind(layer.parameters(), 0.5, trust=0.1, momentum=0.9, model=layer)
        before = layer.weight.detach().clone()
        (0 * layer(torch.ones(4, 3).double())).sum().backward()
        optimizer.step()
        assert torch.equal(layer.weight, before)
        with torch.no_grad():
            layer.weight.zero_()
        optimizer = kind(layer.parameters(), 0.5, trust=0.1, momentum=0.0)
        if kind is CLARS:
            optimizer.watch(layer)
        optimizer.zero_grad()
        layer(torch.ones(4, 3).double()).sum(1).mean().backward()
        gradient = layer.weight.grad.clone()
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), -0.05 * gradient)


# ----------------------------------------------------------------- as an optimiser of torch


@pytest.mark.parametrize("kind", [NAG, LARS, CLARS])
def test_a_state_that_was_saved_goes_on_as_if_nothing_had_happened(kind):
    def start(model: nn.Module) -> Any:
        return kind(model.parameters(), **({} if kind is NAG else {"model": model}), **NUMBERS)

    whole = network()
    train(whole, start(whole))
    first = network()
    optimizer = start(first)
    batches = list(data())

    def some(model: nn.Module, rule: Any, steps: range) -> None:
        for i in steps:
            for group in rule.param_groups:
                group["lr"] = GAMMAS[i]
            rule.zero_grad()
            F.cross_entropy(model(batches[i][0]), batches[i][1]).backward()
            rule.step()

    some(first, optimizer, range(3))
    second = copy.deepcopy(network())
    second.load_state_dict(first.state_dict())
    resumed = start(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    some(second, resumed, range(3, 6))
    for a, b in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_groups_have_rates_of_their_own_and_may_say_that_they_are_no_layers():
    model = network()
    groups = [
        {"params": model[0].parameters(), "lr": 0.8, "plain": 0.5, "layerwise": False},
        {"params": [*model[1].parameters(), *model[4].parameters()]},
    ]
    optimizer = LARS(groups, 0.2, trust=0.02, momentum=0.0, model=model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ((x, y),) = data(1)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    g = {n: p.grad for n, p in model.named_parameters()}
    rate = 0.2 * 0.02 * before["4.weight"].norm() / g["4.weight"].norm()
    for name, gamma in (("0.weight", 0.4), ("4.weight", rate), ("4.bias", 0.2), ("1.bias", 0.2)):
        expected = before[name] - gamma * g[name]
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), expected)


def test_a_copy_of_model_and_optimiser_trains_itself_and_leaves_the_original_alone():
    model, expected = network(), network()
    optimizer = CLARS(model.parameters(), trust=0.02, model=model, **NUMBERS)
    LambdaLR(optimizer, lambda _: 1.0)  # which wraps the original's step
    train(expected, CLARS(expected.parameters(), trust=0.02, model=expected, **NUMBERS))
    before = copy.deepcopy(model.state_dict())
    twin, its_optimizer = copy.deepcopy((model, optimizer))
    train(twin, its_optimizer)
    assert_weights(twin, dict(expected.named_parameters()))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    train(model, optimizer)
    assert_weights(model, dict(expected.named_parameters()))


def test_a_closure_is_called_with_gradients():
    model = network()
    optimizer = NAG(model.parameters(), 0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 2, 5, 5).double()).square().mean()
        loss.backward()
        return float(loss.detach())

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_all_three_keep_one_number_per_weight():
    for name in ("nag", "lars", "clars"):
        assert optimizer_copies(make_optimizer(name, 0.1, momentum=0.9)) == 1
    assert isinstance(CLARS([nn.Parameter(torch.zeros(2))]), LayerwiseOptimizer)
    assert not isinstance(NAG([nn.Parameter(torch.zeros(2))]), LayerwiseOptimizer)


def test_several_processes_may_average_what_the_next_step_divides_by():
    model = network()
    optimizer = CLARS(model.parameters(), 0.5, trust=0.02, momentum=0.0, model=model)
    ((x, y),) = data(1)
    F.cross_entropy(model(x), y).backward()
    before = [model[i].weight.detach().norm() for i in (0, 4)]
    optimizer.moments()[0] = torch.tensor([2.0, 4.0])
    optimizer.step()
    rates = optimizer.layer_figures()["layer_rates"]
    expected = [float(0.01 * w / d) for w, d in zip(before, (2, 4), strict=True)]
    assert rates == pytest.approx(expected, rel=1e-10)


# ----------------------------------------------------------------- which parameters are layers


class Unusual(nn.Module):
    """A normalisation that is called weight, and a layer that is called bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.LayerNorm((2, 3))
        self.bias = nn.Linear(3, 3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.batch_norm = nn.Conv1d(2, 2, 1)
        self.offset = nn.Parameter(torch.zeros(3))
        self.grid = nn.Parameter(torch.zeros(3, 3))


def test_biases_and_normalisations_are_known_by_what_they_are_and_not_by_name():
    model = Unusual()
    plain = {id(p) for p in plain_parameters(model)}
    assert {n for n, p in model.named_parameters() if id(p) in plain} == {
        *("weight.weight", "weight.bias", "bias.bias", "batch_norm.bias", "offset"),
        *("attention.in_proj_bias", "attention.out_proj.bias"),
    }
    plain = {id(p) for p in plain_parameters(model, exclude=["MultiheadAttention", "Conv1d"])}
    layers = {n for n, p in model.named_parameters() if id(p) not in plain}
    assert layers == {"bias.weight", "grid"}


def test_excluded_modules_need_no_identity():
    model = nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    with pytest.raises(ModelError, match="MultiheadAttention, owns in_proj_weight"):
        CLARS(model.parameters(), model=model)
    CLARS(model.parameters(), model=model, exclude=["MultiheadAttention"])
    sampled = CLARS(model.parameters(), model=model, estimator="sampled", samples=2)
    model(torch.randn(3, 5, 4)).square().mean().backward()
    sampled.step()
    assert len(sampled.layer_figures()["layer_rates"]) == 5


# ----------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (NAG, {"lr": -1.0}, "lr >= 0 must hold, but got -1.0"),
        (NAG, {"momentum": 1.0}, "0 <= momentum < 1 must hold, but got 1.0"),
        (LARS, {"trust": float("nan")}, "trust >= 0 must hold, but got nan"),
        (CLARS, {"weight_decay": "much"}, "weight_decay >= 0 must hold, but got 'much'"),
        (CLARS, {"estimator": "guessed"}, "must be exact or sampled, but got 'guessed'"),
        (CLARS, {"samples": 0}, r"samples \(J\) >= 1 must hold for an integer, but got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(kind, options, said):
    with pytest.raises(ConfigError, match=said):
        kind([nn.Parameter(torch.zeros(2))], **options)


def test_clars_says_what_it_is_missing():
    layer = nn.Linear(3, 2)
    optimizer = CLARS(layer.parameters())
    with pytest.raises(ModelError, match="watches no model: give it model="):
        optimizer.step()
    optimizer.watch(layer)
    with pytest.raises(ConfigError, match="must watch a model once"):
        optimizer.watch(layer)
    F.linear(torch.ones(4, 3), layer.weight).sum().backward()
    with pytest.raises(ModelError, match=r"weight has a gradient.*call the module"):
        optimizer.step()
    beside = CLARS([nn.Parameter(torch.ones(2, 2)), *layer.parameters()], model=layer)
    beside.param_groups[0]["params"][0].grad = torch.ones(2, 2)
    with pytest.raises(ModelError, match=r"a parameter of \(2, 2\) has a gradient"):
        beside.step()


# ----------------------------------------------------------------- schedules and configuration


def test_the_polynomial_falls_to_zero_from_the_end_of_the_warm_up():
    schedule = Schedule(kind="polynomial", warmup_epochs=2, epochs=10, power=2)
    found = [schedule.factor(s, 4) for s in (0, 7, 8, 24, 40, 50)]
    assert found == pytest.approx([1 / 8, 1, 1, 0.25, 0, 0])
    line = Schedule(kind="polynomial", epochs=4, power=1)
    assert [line.factor(s, 1) for s in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    with pytest.raises(ConfigError, match="schedule=polynomial needs its length"):
        Schedule(kind="polynomial")


def test_fc_freeze_keeps_linear_layers_still_and_nothing_else():
    model = network()
    before = copy.deepcopy(model.state_dict())
    bound = Schedule(freeze_fc_epochs=1.5).bind(2)
    settings = StageSettings(stage=0, stages=1, delay=0)
    make = make_optimizer("nag", 0.1, weight_decay=0.1)
    window = UpdateWindow(model, settings, optimizer=make, schedule=bound)
    frozen = {id(p) for p in fully_connected_parameters(model)}
    assert [p.shape for p in model[4].parameters()] == [(4, 27), (4,)]
    for update in range(4):
        window.add([torch.ones_like(p) for p in window.trained], ())
        window.apply()
        for name, p in model.named_parameters():
            still = id(p) in frozen and update < 3
            assert torch.equal(p, before[name]) is still, (name, update)


def test_linear_scaling_is_gamma_base_times_the_batches_ratio():
    assert linear_scaling(0.1, 8192, 128) == pytest.approx(6.4)
    with pytest.raises(ConfigError, match="B_base >= 1"):
        linear_scaling(0.1, 8, 0)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"optimizer": "clars", "batch_size": 4096}, {"lr": 3.2, "momentum": 0.9}),
        ({"optimizer": "lars", "batch_size": 64, "accumulate": 4}, {"lr": 0.2}),
        ({"optimizer": "nag"}, {"lr": 0.05, "momentum": 0.9}),
        ({"lr": 0.2, "base_batch_size": 32}, {"lr": 0.4, "base_batch_size": None}),
        (
            {"optimizer": "lars", "recipe": "lars", "batch_size": 8192},
            {"lr": 6.4, "schedule": "polynomial", "power": 2.0, "warmup_epochs": 20},
        ),
        (
            {"optimizer": "clars", "recipe": "clars", "batch_size": 1280},
            {"lr": 1.0, "schedule": "constant", "warmup_epochs": 0},
        ),
    ],
)
def test_a_configuration_resolves_to_numbers_that_resolve_to_themselves(keys, expected):
    config = resolve(pipeline_config({"batch_size": 64, "name": "run", **keys}))
    for key, value in expected.items():
        assert getattr(config, key) == pytest.approx(value), key
    assert resolve(config) == config


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"recipe": "clars"},
            "recipe=clars is one of clars, but got recipe=clars with optimizer=sgd",
        ),
        ({"base_batch_size": 128}, "without lr: give lr"),
        ({"recipe": "adl", "base_batch_size": 128}, "leave one of them out"),
        ({"power": 1.0}, "belongs to schedule=polynomial"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        resolve(pipeline_config(keys))
