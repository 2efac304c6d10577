"""Every optimiser under every method of pipelines and averages, and beside what it is called for.

Columns of both tables meet here; what an optimiser computes is asserted where it lives.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raylab.algorithms.averaging import AVERAGING_METHODS
from raylab.algorithms.pipeline import PIPELINE_METHODS
from raylab.drivers.averaging.course import Course
from raylab.drivers.averaging.settings import AveragingSettings
from raylab.drivers.averaging.simulated import Replicas
from raylab.optimizers import make_optimizer, optimizer_names
from tests import helpers
from tests.reference.pipeline import Optimiser
from tests.stages import fixed, normal, seeded

pytestmark = pytest.mark.unit

BATCHES = [(normal(8, 4, seed=n), torch.randint(3, (8,), generator=seeded(n))) for n in range(8)]
RATE = 1e-3


def network() -> nn.Sequential:
    return fixed(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def moved_and_finite(before: nn.Module, after: nn.Module) -> bool:
    pairs = list(zip(before.parameters(), after.parameters(), strict=True))
    return all(bool(p.isfinite().all()) and not torch.equal(o, p) for o, p in pairs)


@pytest.mark.parametrize("method", PIPELINE_METHODS)
@pytest.mark.parametrize("name", optimizer_names())
def test_a_pipeline_trains_with_it(name: str, method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(helpers, "torch_optimiser", lambda _: make_optimizer(name, RATE))
    run = helpers.run_pipeline(
        network(),
        method=method,
        cuts=[2],
        epochs=[BATCHES],
        optimiser=Optimiser(kind="sgd", lr=RATE),
        accumulate=2,
    )
    assert moved_and_finite(network(), run.model)


@pytest.mark.parametrize("method", AVERAGING_METHODS)
@pytest.mark.parametrize("name", optimizer_names())
def test_replicas_train_with_it(name: str, method: str):
    course = Course(
        settings=AveragingSettings(method=method, least=2, most=2),
        model=network(),
        loss_fn=F.cross_entropy,
        optimizer=make_optimizer(name, RATE),
        schedule=None,
        batches=BATCHES,
        test=BATCHES[:1],
        epochs=2,
    )
    replicas = Replicas(course, 2)
    replicas.loop.run()
    assert moved_and_finite(network(), replicas.loop.model)
    if method == "minibatch_sgd":
        # All that a step is made of is averaged, so that the replicas stay one.
        weights = [copy.deepcopy(each.model.state_dict()) for each in replicas.workers]
        for key, value in weights[0].items():
            if "running" not in key:
                assert torch.equal(value, weights[1][key]), key
