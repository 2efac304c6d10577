"""Schedules of a user's own: the updates that they are told, and those that cannot be stepped."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from raylab import AveragingTrainer, ConfigError, PipelineTrainer
from raylab.drivers.averaging.course import Course
from raylab.drivers.averaging.settings import AveragingSettings
from raylab.drivers.averaging.simulated import Replicas
from raylab.drivers.pipeline.user_batches import bound
from tests import helpers
from tests.reference.pipeline import Optimiser

pytestmark = pytest.mark.unit

BATCHES = [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))] * 5
RATE = functools.partial(SGD, lr=0.1, momentum=0.9)


def one_cycle(optimizer: Optimizer, updates: int) -> LRScheduler:
    return OneCycleLR(optimizer, 0.4, total_steps=updates)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def of_pipeline(schedule: Any, *, batches: Any = BATCHES, epochs: int = 3, accumulate: int = 2):
    return bound(schedule, batches, accumulate, epochs=epochs, optimizer=RATE)


def test_a_pipeline_tells_a_schedule_the_updates_that_its_stages_make(monkeypatch):
    schedule = of_pipeline(one_cycle)
    assert pickle.dumps(schedule)
    monkeypatch.setattr(helpers, "schedule_of", lambda _: schedule)
    monkeypatch.setattr(helpers, "torch_optimiser", lambda _: RATE)
    run = helpers.run_pipeline(
        network(),
        method="ddg",
        cuts=[1],
        epochs=[BATCHES] * 3,
        optimiser=Optimiser(kind="sgd", lr=0.1),
        accumulate=2,
    )
    # 15 batches are 8 updates, of which the last one is at the end of the cycle.
    for rule in run.rules:
        assert rule.window.updates == 8
        assert rule.window._schedule.total_steps == 8
        assert rule.window.learning_rate == pytest.approx(0.4 / 25 / 1e4, abs=0.05)


def test_replicas_tell_it_their_own_steps():
    course = Course(
        settings=AveragingSettings(method="local_sgd", least=2, most=2),
        model=network(),
        loss_fn=F.cross_entropy,
        optimizer=RATE,
        schedule=one_cycle,
        batches=BATCHES,
        test=None,
        epochs=3,
    )
    replicas = Replicas(course, 2)
    replicas.loop.run()
    for each in replicas.workers:
        assert each.step == each.schedule.total_steps == 9


def test_a_schedule_of_the_optimiser_alone_is_called_as_ever():
    schedule = functools.partial(StepLR, step_size=3)
    assert of_pipeline(schedule) is schedule
    assert of_pipeline(None) is None
    made = of_pipeline(CosineAnnealingLR)(RATE([nn.Parameter(torch.zeros(1))]))
    assert made.T_max == 8


class Endless:
    """Batches that do not say how many they are."""

    def __iter__(self):
        return iter(BATCHES)


def test_updates_that_nobody_knows_are_asked_for_and_else_not_needed():
    of_pipeline(functools.partial(StepLR, step_size=3), batches=Endless())
    with pytest.raises(ConfigError, match="updates of the run, must know the batches"):
        of_pipeline(one_cycle, batches=Endless())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (ReduceLROnPlateau, r"ReduceLROnPlateau\.step needs one: give a schedule over epochs"),
        (functools.partial(OneCycleLR, max_lr=0.4, total_steps=2), r"total_steps=2 for .* updates"),
        (lambda optimizer: None, "it made a NoneType"),
        (lambda optimizer: optimizer.rate, "it raises AttributeError"),
    ],
)
def test_a_schedule_that_cannot_be_stepped_is_refused_by_both_trainers(schedule, message):
    pipeline = PipelineTrainer(network(), F.cross_entropy, optimizer=RATE, schedule=schedule)
    replicas = AveragingTrainer(network(), F.cross_entropy, optimizer=RATE, schedule=schedule)
    for trainer in (pipeline, replicas):
        with pytest.raises(ConfigError, match=message):
            trainer.fit(BATCHES, epochs=3, progress=False)
