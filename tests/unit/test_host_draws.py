"""Blocks that draw from `random`, from numpy, or from a generator of their own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.units import Unit
from raylab.algorithms.averaging import AVERAGING_METHODS
from raylab.algorithms.averaging.averages import average_of
from raylab.algorithms.averaging.collective import SerialCollectives
from raylab.algorithms.averaging.worker import AveragingWorker, WorkerSettings
from tests.helpers import run_pipeline
from tests.reference.pipeline import Optimiser
from tests.stages import SGD, assert_close, fixed, make, normal

pytestmark = pytest.mark.unit

BATCHES = [(normal(8, 4, seed=n), torch.arange(8) % 3) for n in range(12)]


class Noise(nn.Module):
    """Scales its input by a number that is drawn, and keeps a list of what it has drawn."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.seen: list[float] = []
        self.own: Any = {
            "random.Random": random.Random,
            "numpy.Generator": np.random.default_rng,
            "numpy.RandomState": np.random.RandomState,
        }.get(source, lambda _: None)(5)

    def forward(self, x: Tensor) -> Tensor:
        if self.own is not None:
            scale = float(self.own.random())
        elif self.source == "random":
            scale = random.random()
        else:
            scale = float(np.random.randn())
        self.seen.append(scale)
        return x * (1 + scale)


SOURCES = ["random", "numpy", "random.Random", "numpy.Generator", "numpy.RandomState"]
EACH = pytest.mark.parametrize("source", SOURCES)


def model(source: str) -> nn.Sequential:
    return fixed(nn.Linear(4, 5), Noise(source), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 3))


def run(source: str, method: str, **options: Any) -> Any:
    optimiser = Optimiser(kind="sgd", lr=0.1)
    given = {"cuts": [3], "epochs": [BATCHES], "optimiser": optimiser, **options}
    return run_pipeline(model(source), method=method, **given)


@EACH
@pytest.mark.parametrize("method", ["fr", "dsp"])
def test_a_replay_draws_what_the_play_drew(source, method):
    drawn = run(source, method).model[1].seen
    assert len(drawn) == 2 * len(BATCHES)
    assert len(set(drawn)) == len(BATCHES)


@EACH
@pytest.mark.parametrize("method", ["ddg", "adl"])
def test_a_forward_that_is_run_again_draws_what_it_drew(source, method):
    expected = run(source, method).model.state_dict()
    assert_close(run(source, method, recompute=True).model.state_dict(), expected)


@EACH
def test_a_run_repeats_whatever_was_drawn_before(source):
    random.seed(1)
    np.random.seed(1)
    first = run(source, "ddg").model.state_dict()
    random.seed(2)
    np.random.seed(2)
    assert_close(run(source, "ddg").model.state_dict(), first)


def test_micro_batches_draw_differently():
    drawn = run("random", "gpipe", micro_batches=4).model[1].seen
    assert len(set(drawn)) == 4 * len(BATCHES)


@pytest.mark.parametrize("source", ["random", "numpy"])
def test_a_stage_leaves_the_hosts_generators_as_they_are(source):
    stage = make(fixed(nn.Linear(4, 4), Noise(source)))
    np.random.randn()  # its pair is kept for the next call
    host, of_numpy = random.getstate(), np.random.get_state()
    for n in range(20):
        stage.forward(Unit(n), (normal(2, 4),), ())
    assert random.getstate() == host
    now = np.random.get_state()
    assert now[2:] == of_numpy[2:]
    assert np.array_equal(now[1], of_numpy[1])


@EACH
def test_a_restored_stage_draws_what_the_forward_drew(source):
    def stage() -> Any:
        return make(fixed(nn.Linear(4, 4), Noise(source)), delay=2, resumable=True)

    whole, left = stage(), stage()
    for each in (whole, left):
        for n in range(2):
            each.forward(Unit(n), (normal(5, 4, seed=n),), ())
            each.update()
    resumed = stage()
    resumed.restore(left.save())
    for n in range(2):
        found = [each.backward(Unit(n), (normal(5, 4, seed=9),)) for each in (whole, resumed)]
        assert_close(*found)


def test_a_block_that_begins_to_draw_late_is_found_out():
    class Late(Noise):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.mean() > 0 else x

    stage = make(fixed(nn.Linear(4, 4), Late("random"), nn.Identity())[1:], replay=True)
    for n in range(200):
        stage.forward(Unit(n), (torch.full((2, 4), -1.0 if n < 30 else 1.0),), ())
    drawn = stage.blocks.module[0].seen
    stage.forward(Unit(199), (torch.ones(2, 4),), ())
    assert drawn[-1] == drawn[-2]


@EACH
def test_a_workers_step_draws_by_its_number_alone(source):
    def weights(noise: int) -> Any:
        numbers = AVERAGING_METHODS["local_sgd"].numbers()
        (seat,) = SerialCollectives(1).seats
        worker = AveragingWorker(
            model(source),
            WorkerSettings(rule=numbers),
            optimizer=SGD,
            schedule=None,
            loss_fn=F.cross_entropy,
            average=lambda flat: average_of(seat, flat, averages=numbers.averages),
        )
        random.seed(noise)
        np.random.seed(noise)
        for x, y in BATCHES:
            worker.begin(x, y)
            worker.end()
        return worker.model.state_dict()

    assert_close(weights(1), weights(2))
