"""A stage of DNI or DGL alone: what is learnt, from what, and what stays out of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.units import Unit
from raylab.algorithms.stage.cut_features import CutFeatures
from raylab.algorithms.stage.delayed_stage import DelayedStage
from raylab.algorithms.stage.local_loss_stage import LocalLossStage
from raylab.algorithms.stage.settings import StageSettings
from raylab.algorithms.stage.synthetic_stage import SyntheticStage
from raylab.errors import ModelError, NonFiniteLossError

pytestmark = pytest.mark.unit

FLAT = CutFeatures(channels=3, image=False, classes=2, dtype=torch.float64)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def make(rule: type[DelayedStage], *, loss_fn: Any = F.cross_entropy, **settings: Any) -> Any:
    torch.manual_seed(0)
    given = {"stage": 0, "stages": 2, "delay": 0, "cut": FLAT, **settings}
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()
    return rule(module, StageSettings(**given), optimizer=sgd, loss_fn=loss_fn)


def batch(samples: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, dtype=torch.float64, generator=generator)
    return x, (x[:, 0] > 0).long()


def true_gradient(features: Tensor, y: Tensor) -> Tensor:
    """Of a mean loss whose best features are -1 or 1, by class."""
    return (features - (2.0 * y[:, None] - 1)) / len(y)


def test_a_synthesizer_learns_the_gradient_that_comes_and_the_stage_goes_down_with_it():
    stage = make(SyntheticStage)
    x, y = batch(32)
    errors, losses = [], []
    for n in range(200):
        (features,) = stage.forward(Unit(n), (x,), (y,))
        stage.backward(Unit(n), ())
        stage.update()
        stage.correct(Unit(n), (true_gradient(features, y),))
        losses.append(float((features - (2.0 * y[:, None] - 1)).square().mean()))
        errors.append(stage.report()["synthesis_mse"])
    assert errors[-1] < 0.2 * errors[0]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_what_is_learnt_is_the_gradient_of_a_sample_whatever_the_batch(reduction):
    stage = make(SyntheticStage, loss_fn=nn.CrossEntropyLoss(reduction=reduction))
    per_batch = 6 if reduction == "mean" else 1
    x, y = batch()
    (features,) = stage.forward(Unit(0), (x,), (y,))
    stage.backward(Unit(0), ())
    arrived = torch.ones_like(features)
    stage.correct(Unit(0), (arrived,))
    # The synthesizer says zero at first, so that this is the mean square of its target.
    assert stage.report()["synthesis_mse"] == pytest.approx(per_batch**2)


def test_statistics_of_a_synthesizer_move_once_a_batch_with_the_correction():
    stage = make(SyntheticStage)
    tracked = stage.synthesizer.layers[1]
    x, y = batch()
    (features,) = stage.forward(Unit(0), (x,), (y,))
    stage.backward(Unit(0), ())
    assert int(tracked.num_batches_tracked) == 0
    stage.correct(Unit(0), (features,))
    assert int(tracked.num_batches_tracked) == 1


def test_one_sample_without_statistics_of_its_own_is_normalised_by_the_running_ones():
    stage = make(SyntheticStage)
    x, y = batch(1)
    (features,) = stage.forward(Unit(0), (x,), (y,))
    stage.backward(Unit(0), ())
    stage.correct(Unit(0), (features,))
    assert int(stage.synthesizer.layers[1].num_batches_tracked) == 0
    assert torch.isfinite(stage.synthesizer.layers[-1].weight).all()


def test_features_that_nothing_comes_of_have_a_gradient_of_zero():
    stage = make(SyntheticStage)
    x, y = batch()
    stage.forward(Unit(0), (x,), (y,))
    stage.backward(Unit(0), ())
    stage.correct(Unit(0), (None,))
    assert stage.report()["synthesis_mse"] == 0


def test_under_bfloat16_a_stage_of_dni_trains_and_its_weights_stay_as_they_are():
    cut = CutFeatures(channels=3, image=False, classes=2, dtype=torch.float32)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    for rule in (SyntheticStage, LocalLossStage):
        settings = StageSettings(stage=1, stages=3, delay=0, cut=cut, precision="bfloat16")
        stage = rule(module, settings, optimizer=sgd, loss_fn=F.cross_entropy)
        x, y = batch()
        for n in range(2):
            (features,) = stage.forward(Unit(n), (x.bfloat16(),), (y,))
            stage.backward(Unit(n), ())
            stage.update()
            if rule is SyntheticStage:
                stage.correct(Unit(n), (torch.ones_like(features),))
        assert features.dtype is torch.bfloat16
        assert {p.dtype for p in stage.blocks.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("rule", [SyntheticStage, LocalLossStage])
def test_the_network_beside_a_stage_is_no_part_of_its_state(rule):
    assert list(make(rule).state()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("rule", [SyntheticStage, LocalLossStage])
def test_the_last_stage_has_no_network_beside_it_and_the_others_must_know_their_cut(rule):
    last = make(rule, stage=1, cut=None)
    assert getattr(last, "synthesizer", None) is None
    assert getattr(last, "classifier", None) is None
    with pytest.raises(ModelError, match="stage 0 must know the features at its cut"):
        make(rule, cut=None)


def test_only_an_estimate_can_be_corrected():
    with pytest.raises(ModelError, match="cannot correct"):
        make(DelayedStage).correct(Unit(0), ())
    with pytest.raises(ModelError, match="the last stage has the true gradient"):
        make(SyntheticStage, stage=1, cut=None).correct(Unit(0), (torch.ones(1),))


def test_a_classifier_and_its_stage_are_clipped_by_one_norm():
    stage = make(LocalLossStage, clip_norm=1e-3)
    before = [p.detach().clone() for p in stage.window.trained]
    assert len(before) == 4
    x, y = batch()
    stage.forward(Unit(0), (x,), (y,))
    assert stage.backward(Unit(0), ()) == (None,)
    stage.update()
    moved = torch.cat(
        [(p - b).flatten() for p, b in zip(stage.window.trained, before, strict=True)]
    )
    assert float(moved.detach().norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_a_local_loss_that_is_not_finite_ends_the_run():
    stage = make(LocalLossStage)
    x, y = batch()
    stage.forward(Unit(0), (x * float("inf"),), (y,))
    with pytest.raises(NonFiniteLossError, match="batch 0"):
        stage.backward(Unit(0), ())
