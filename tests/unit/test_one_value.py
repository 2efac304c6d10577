"""Batch normalisation with a single sample: told before training where it can be known."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from actors.units import Unit
from raylab import AveragingTrainer, ModelError, PipelineTrainer
from raylab.data import load
from raylab.drivers.one_value import batch_sizes
from tests.stages import fixed, make, normal

pytestmark = pytest.mark.unit


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def of_sizes(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(n, 4), torch.zeros(n, dtype=torch.long)) for n in sizes]


@pytest.mark.parametrize(
    ("method", "micro_batches", "sizes", "message"),
    [
        ("gpipe", 4, (8, 5), r"batches of 5 samples that micro_batches=4 .*fewer micro_batches"),
        ("1f1b", 8, (8, 8), r"batches of 8 samples that micro_batches=8"),
        ("ddg", 4, (8, 1), r"batches of 1 samples leave .*drop_last=True"),
    ],
)
def test_a_part_of_one_sample_names_what_makes_it(method, micro_batches, sizes, message):
    trainer = PipelineTrainer(
        network(), F.cross_entropy, method=method, micro_batches=micro_batches
    )
    with pytest.raises(ModelError, match=message):
        trainer.plan(of_sizes(*sizes), measure=False)
    trainer.plan(of_sizes(16, 16), measure=False)


def test_without_batch_normalisation_a_single_sample_trains():
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    PipelineTrainer(model, F.cross_entropy, method="gpipe").plan(of_sizes(8, 5), measure=False)


def test_replicas_are_told_of_the_last_batch_of_a_loader():
    data = TensorDataset(torch.randn(9, 4), torch.zeros(9, dtype=torch.long))
    trainer = AveragingTrainer(network(), F.cross_entropy)
    with pytest.raises(ModelError, match=r"batches of 1 samples.*drop_last=True"):
        trainer.fit(DataLoader(data, batch_size=4), progress=False)


def test_sizes_are_known_of_lists_loaders_and_own_batches():
    data = TensorDataset(torch.randn(9, 4), torch.zeros(9))
    assert batch_sizes(of_sizes(4, 3), 4) == [3, 4]
    assert batch_sizes(DataLoader(data, batch_size=4), 4) == [1, 4]
    assert batch_sizes(DataLoader(data, batch_size=4, drop_last=True), 4) == [4]
    assert batch_sizes(load("digits", batch_size=100).train, 100) == [37, 100]
    assert batch_sizes(iter(()), 4) == [4]


def test_a_batch_that_nobody_could_know_is_told_by_its_stage():
    stage = make(fixed(nn.BatchNorm1d(3)))
    with pytest.raises(ModelError, match=r"a single sample: take fewer micro_batches"):
        stage.forward(Unit(0), (normal(1, 3),), ())
