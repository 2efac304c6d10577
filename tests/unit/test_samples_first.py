"""CLARS where dimension 0 of a layer's input is not the batch: told before any actor starts."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raylab import AveragingTrainer, ModelError, PipelineTrainer
from raylab.drivers.samples_first import check_samples_first
from raylab.optimizers import CLARS, LARS

pytestmark = pytest.mark.unit

PLACES = 5


class To(nn.Module):
    """Moves dimensions as it is told."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "turned":
            return x.transpose(0, 1)
        if self.how == "folded":
            return x.flatten(0, 1)
        return x.unflatten(0, (-1, PLACES)) if self.how == "unfolded" else x.mean(1)


def network(there: str, back: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(6, 6), To(there)),
        nn.Linear(6, 6),
        nn.Sequential(To(back), To("mean"), nn.Linear(6, 3)),
    )


MOVED = [network("turned", "turned"), network("folded", "unfolded")]


@pytest.mark.parametrize("samples", [8, PLACES], ids=["", "as many samples as places"])
@pytest.mark.parametrize("model", MOVED, ids=["time first", "folded"])
def test_a_layer_that_does_not_see_the_samples_first_is_named(model: nn.Module, samples: int):
    x = torch.randn(samples, PLACES, 6)
    with pytest.raises(ModelError, match=r"samples, but 1 is given the shape .* or take lars"):
        check_samples_first(CLARS, model, x, samples)
    check_samples_first(LARS, model, x, samples)
    check_samples_first(functools.partial(CLARS, exclude=["Linear"]), model, x, samples)


@pytest.mark.parametrize("samples", [8, PLACES])
def test_samples_that_come_first_are_let_through(samples: int):
    x = torch.randn(samples, PLACES, 6)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(PLACES), nn.Flatten(), nn.Linear(20, 3))
    check_samples_first(CLARS, model, x, samples)


@pytest.mark.parametrize("samples", [8, PLACES])
def test_attention_is_asked_for_its_samples_too(samples: int):
    class Attention(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(6, 2, batch_first=first)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x)[0]

    sampled = functools.partial(CLARS, estimator="sampled")
    x = torch.randn(samples, PLACES, 6)
    check_samples_first(sampled, Attention(first=True), x, samples)
    turned = nn.Sequential(To("turned"), Attention(first=False), To("turned"))
    with pytest.raises(ModelError, match=r"but 1\.inner is given the shape"):
        check_samples_first(sampled, turned, x, samples)


def test_both_trainers_tell_it_before_any_actor_starts():
    y = torch.zeros(8, dtype=torch.long)
    batches = [(torch.randn(8, PLACES, 6), y)] * 2
    pipeline = PipelineTrainer(MOVED[0], F.cross_entropy, stages=[1, 2], optimizer=CLARS)
    with pytest.raises(ModelError, match="samples, but 1 is given"):
        pipeline.plan(batches, measure=False)
    replicas = AveragingTrainer(MOVED[1], F.cross_entropy, optimizer=CLARS)
    with pytest.raises(ModelError, match="samples, but 1 is given"):
        replicas.fit(batches, progress=False)
