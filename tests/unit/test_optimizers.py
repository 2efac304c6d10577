"""Optimisers by name, schedules over epochs, and the papers' recipes."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from raylab.errors import ConfigError
from raylab.optimizers import RECIPES, Schedule, make_optimizer, optimizer_names

pytestmark = pytest.mark.unit


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return list(nn.Linear(3, 2).parameters())


# ----------------------------------------------------------------- optimisers


# CLARS wants more than a gradient: what single samples make of it.
@pytest.mark.parametrize("name", sorted({*optimizer_names()} - {"clars"}))
def test_every_name_makes_an_optimiser_that_takes_a_step(name):
    trained = parameters()
    before = [p.detach().clone() for p in trained]
    optimizer = make_optimizer(name, 0.1)(trained)
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.1
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(trained, before, strict=True))


def test_the_names_are_sorted_and_leave_out_what_a_stage_cannot_use():
    names = optimizer_names()
    assert list(names) == sorted(names)
    assert {"sgd", "adam", "adamw", "rmsprop", "adagrad"} <= set(names)
    assert not {"optimizer", "lbfgs", "sparseadam", "muon"} & set(names)


@pytest.mark.parametrize("name", ["SGD", "sgd", "Sgd"])
def test_names_are_known_in_any_case(name):
    assert isinstance(make_optimizer(name, 0.1)(parameters()), torch.optim.SGD)


def test_options_reach_torch():
    made = make_optimizer("sgd", 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)(parameters())
    group = made.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, True)


def test_each_call_makes_an_optimiser_with_a_state_of_its_own():
    make = make_optimizer("adam", 0.1)
    first, second = make(parameters()), make(parameters())
    for p in first.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    first.step()
    assert first.state
    assert not second.state


def test_what_is_made_survives_pickling_and_makes_the_same():
    make = pickle.loads(pickle.dumps(make_optimizer("adamw", 0.02, betas=(0.8, 0.9))))  # noqa: S301
    group = make(parameters()).param_groups[0]
    assert (group["lr"], group["betas"]) == (0.02, (0.8, 0.9))


@pytest.mark.parametrize(
    ("name", "said"),
    [("sdg", "did you mean sgd"), ("lbfgs", "must be one of adadelta"), ("", "must be one of")],
)
def test_an_unknown_name_lists_the_known_ones(name, said):
    with pytest.raises(ConfigError, match=said):
        make_optimizer(name, 0.1)


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"SGD takes .*momentum.* but got momentumm, speed"):
        make_optimizer("sgd", 0.1, momentumm=0.9, speed=3)


@pytest.mark.parametrize(
    ("name", "lr", "options"),
    [
        ("sgd", -0.1, {}),
        ("sgd", 0.1, {"momentum": -1.0}),
        ("sgd", 0.1, {"nesterov": True}),
        ("adam", 0.1, {"betas": (0.9, 1.5)}),
        ("adam", 0.1, {"betas": 3}),
        ("sgd", "fast", {}),
    ],
)
def test_a_value_out_of_range_is_refused_when_named_and_not_in_an_actor(name, lr, options):
    with pytest.raises(
        ConfigError, match=rf"cannot be made with lr={lr}|lr > 0 must hold, but got {lr!r}"
    ):
        make_optimizer(name, lr, **options)


@pytest.mark.parametrize("lr", [0.0, math.nan, math.inf])
def test_a_learning_rate_must_be_positive_and_finite(lr):
    with pytest.raises(ConfigError, match="lr"):
        make_optimizer("sgd", lr)


# ----------------------------------------------------------------- schedules


def factors(schedule: Schedule, updates: int, updates_per_epoch: float) -> list[float]:
    return [schedule.factor(s, updates_per_epoch) for s in range(updates)]


def test_a_constant_schedule_changes_nothing():
    assert factors(Schedule(), 5, 2) == [1.0] * 5


def test_the_warm_up_rises_update_by_update_to_1():
    found = factors(Schedule(warmup_epochs=2), 10, 4)
    assert found == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1, 1])


def test_the_warm_up_may_be_part_of_an_epoch():
    assert factors(Schedule(warmup_epochs=0.5), 4, 4) == pytest.approx([0.5, 1, 1, 1])


def test_steps_fall_at_the_first_update_of_each_milestone():
    schedule = Schedule(kind="steps", milestones=(2, 3), gamma=0.5)
    assert factors(schedule, 10, 2) == pytest.approx([1, 1, 1, 1, 0.5, 0.5] + [0.25] * 4)


@pytest.mark.parametrize("batches", [3, 7, 10, 390, 391])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("milestone", [2, 15, 225])
def test_steps_fall_on_time_where_updates_do_not_divide_the_epoch(batches, accumulate, milestone):
    schedule = Schedule(kind="steps", milestones=(milestone,), gamma=0.1)
    first = -(-milestone * batches // accumulate)
    assert schedule.factor(first - 1, batches / accumulate) == 1.0
    assert schedule.factor(first, batches / accumulate) == pytest.approx(0.1)


def test_the_cosine_falls_from_1_through_a_half_to_0_and_stays():
    found = factors(Schedule(kind="cosine", epochs=4), 12, 2)
    expected = [0.5 * (1 + math.cos(math.pi * s / 8)) for s in range(8)] + [0.0] * 4
    assert found == pytest.approx(expected)
    assert found[0] == 1.0
    assert found[4] == pytest.approx(0.5)


def test_the_warm_up_multiplies_whatever_follows():
    steps = Schedule(kind="steps", milestones=(1,), gamma=0.1, warmup_epochs=2)
    assert factors(steps, 5, 2) == pytest.approx([0.25, 0.5, 0.075, 0.1, 0.1])
    cosine = Schedule(kind="cosine", epochs=2, warmup_epochs=1)
    plain = Schedule(kind="cosine", epochs=2)
    assert cosine.factor(0, 2) == pytest.approx(0.5 * plain.factor(0, 2))
    assert cosine.factor(3, 2) == pytest.approx(plain.factor(3, 2))


def test_a_bound_schedule_drives_torch_update_by_update_after_pickling():
    schedule = Schedule(kind="steps", milestones=(2, 3), gamma=0.1, warmup_epochs=1)
    bound = pickle.loads(pickle.dumps(schedule.bind(4)))  # noqa: S301
    optimizer = make_optimizer("sgd", 0.8)(parameters())
    scheduler = bound(optimizer)
    rates = []
    for _ in range(16):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    warm_up = [0.2, 0.4, 0.6, 0.8]
    assert rates == pytest.approx(warm_up + [0.8] * 4 + [0.08] * 4 + [0.008] * 4)


def test_the_state_of_a_bound_scheduler_restores_the_rate():
    bound = Schedule(kind="cosine", epochs=2).bind(4)
    optimizer = make_optimizer("sgd", 1.0)(parameters())
    scheduler = bound(optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    state = copy.deepcopy(scheduler.state_dict())
    again = make_optimizer("sgd", 1.0)(parameters())
    restored = bound(again)
    restored.load_state_dict(state)
    again.step()
    restored.step()
    assert again.param_groups[0]["lr"] == pytest.approx(bound.factor(4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "linear"}, "constant, steps, cosine, polynomial, but got 'linear'"),
        ({"warmup_epochs": -1}, "warmup_epochs >= 0 must hold, but got -1"),
        ({"kind": "steps", "milestones": (3, 2)}, r"ascend, but got \[3, 2\]"),
        ({"kind": "steps"}, "needs milestones"),
        ({"gamma": 0.0}, "gamma > 0 must hold, but got 0.0"),
        ({"kind": "cosine"}, "needs its length, but got epochs=None"),
        ({"kind": "cosine", "epochs": 0}, "needs its length, but got epochs=0"),
        ({"kind": "cosine", "epochs": -2}, "needs its length, but got epochs=-2"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Schedule(**options)


# ----------------------------------------------------------------- recipes


def rates(name: str, batch_size: int, accumulate: int, epochs: list[float]) -> list[float]:
    recipe = RECIPES[name]
    lr = recipe.learning_rate(batch_size, accumulate)
    return [lr * recipe.schedule.factor(round(100 * e), 100) for e in epochs]


@pytest.mark.parametrize("name", ["ddg", "fr"])
def test_the_recipe_of_ddg_and_features_replay_is_the_thesis(name):
    recipe = RECIPES[name]
    found = rates(name, 128, 1, [0, 149.99, 150, 224.99, 225, 299.99])
    assert found == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    assert (recipe.momentum, recipe.weight_decay, recipe.epochs) == (0.9, 5e-4, 300)
    assert recipe.learning_rate(32, 4) == recipe.learning_rate(128, 1) == 0.01


def test_the_recipe_of_adl_is_the_paper():
    recipe = RECIPES["adl"]
    # b M = 128 samples an update: 0.1 · 128/256, with 3 epochs of warm-up.
    found = rates("adl", 32, 4, [1.49, 3, 149.99, 150, 224.99, 225, 274.99, 275, 299.99])
    assert found[0] == pytest.approx(0.025)
    assert found[1:] == pytest.approx([5e-2, 5e-2, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])
    assert (recipe.momentum, recipe.weight_decay, recipe.epochs) == (0.9, 5e-4, 300)
    assert recipe.schedule.warmup_epochs == 3


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "lr"), [(256, 1, 0.1), (32, 1, 0.0125), (64, 8, 0.2)]
)
@pytest.mark.parametrize("name", ["adl", "adl_imagenet"])
def test_the_rate_of_adl_grows_with_the_samples_of_an_update(name, batch_size, accumulate, lr):
    assert RECIPES[name].learning_rate(batch_size, accumulate) == pytest.approx(lr)


def test_the_recipe_of_adl_on_imagenet_falls_at_30_60_and_80_of_90():
    recipe = RECIPES["adl_imagenet"]
    found = rates("adl_imagenet", 256, 1, [3, 29.99, 30, 60, 80, 89.99])
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001, 0.0001])
    assert (recipe.weight_decay, recipe.epochs) == (1e-4, 90)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_trained_with(name):
    recipe = RECIPES[name]
    make = make_optimizer(
        recipe.optimizer,
        recipe.learning_rate(recipe.batch_size, 1),
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    optimizer = make(parameters())
    recipe.schedule.bind(10)(optimizer)
    first = recipe.schedule.factor(0, 10) * recipe.learning_rate(recipe.batch_size, 1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(first)
    assert max(recipe.schedule.milestones, default=0) < recipe.epochs
