"""The sufficient-direction constant: measured as (6.10) has it, and without a trace in the run."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raylab.algorithms.stage.sigma import SufficientDirection
from raylab.records import RowMerger
from tests.helpers import run_pipeline
from tests.reference import pipeline as reference
from tests.reference.networks import batches, conv_bn64, mlp64
from tests.reference.pipeline import Optimiser
from tests.unit.test_conformance import ADAM, SGD, assert_equal, epochs_of

pytestmark = pytest.mark.unit

STILL = Optimiser(kind="sgd", lr=0.0)


def sums_of(rows, stage):
    pairs = [row["sigma_sums"] for row in rows if row["stage"] == stage and "sigma_sums" in row]
    return [sum(pair[i] for pair in pairs) for i in (0, 1)]


@pytest.mark.parametrize(
    ("method", "network", "accumulate", "optimiser", "more"),
    [
        ("ddg", "conv", 1, ADAM, {}),
        ("ddg", "mlp", 2, SGD, {"weight_version": "current"}),
        ("fr", "conv", 1, SGD, {}),
        ("fr", "mlp", 2, ADAM, {}),
        ("adl", "mlp", 2, SGD, {"gradient_shrink": 0.5}),
        ("dsp", "mlp", 1, ADAM, {}),
    ],
)
def test_sigma_equals_that_of_the_serial_reference(method, network, accumulate, optimiser, more):
    model = {"conv": conv_bn64, "mlp": mlp64}[network](1)
    cuts = [2, 5, 7]
    given = {
        "method": method,
        "cuts": cuts,
        "epochs": epochs_of(network),
        "optimiser": optimiser,
        "accumulate": accumulate,
        **more,
    }
    found = run_pipeline(model, sigma_every=1, **given)
    expected = reference.train(model, loss_fn=F.cross_entropy, sigma_every=accumulate, **given)
    assert_equal(found.model.state_dict(), expected.state)
    assert expected.sigma
    for k in range(4):
        for i in (0, 1):
            total = sum(measured[k][i] for measured in expected.sigma)
            assert sums_of(found.rows, k)[i] == pytest.approx(total, rel=1e-9)


class Draws(nn.Sequential):
    """Dropout and normalisation: what a measurement could disturb."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Dropout(0.3)),
            nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Dropout(0.3)),
            nn.Sequential(nn.BatchNorm1d(7), nn.ReLU(inplace=True)),
            nn.Linear(7, 4),
        )


@pytest.mark.parametrize("method", ["bp", "ddg", "fr", "adl", "dsp"])
def test_measuring_changes_no_bit_of_what_is_trained(method):
    model = Draws().double()
    given = {"method": method, "cuts": [1, 3], "epochs": epochs_of("mlp"), "optimiser": ADAM}
    plain = run_pipeline(model, **given)
    shuffle = random.Random(1)
    measured = run_pipeline(model, sigma_every=2, shuffle=shuffle, **given)
    assert_equal(measured.model.state_dict(), plain.model.state_dict(), rtol=0)
    assert not any("sigma_sums" in row for row in plain.rows)
    assert all(sums_of(measured.rows, k)[1] > 0 for k in range(3))
    for runner in measured.runners:
        assert runner.remains() == {}
    for name in ("loss", "samples", "gradients", "graphs_peak", "inputs_peak"):
        rows = [[row[name] for row in run.rows if row["stage"] == 2] for run in (plain, measured)]
        assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("method", "optimiser"),
    [("bp", SGD), ("ddg", STILL), ("fr", STILL), ("adl", STILL), ("dsp", STILL)],
)
def test_sigma_is_one_where_nothing_is_late_or_nothing_moves_dropout_and_all(method, optimiser):
    model = Draws().double()
    data = epochs_of("mlp")
    found = run_pipeline(
        model, method=method, cuts=[1, 3], epochs=data, optimiser=optimiser, sigma_every=1
    )
    for row in RowMerger(3).add(found.rows):
        assert row["sigma"] == pytest.approx(1, rel=1e-12)
        assert row["stage_sigma"] == pytest.approx([1, 1, 1], rel=1e-12)


@pytest.mark.parametrize(("method", "cuts", "first"), [("ddg", [3, 6], 2), ("adl", [3, 6], 4)])
def test_the_first_measurement_waits_until_every_stage_applies_a_gradient(method, cuts, first):
    model = mlp64(3)
    for count, some in ((first, False), (first + 1, True)):
        data = [batches("mlp", count, seed=1)]
        given = {"method": method, "cuts": cuts, "epochs": data, "optimiser": SGD}
        rows = run_pipeline(model, sigma_every=1, **given).rows
        assert any("sigma_sums" in row for row in rows) == some


def test_a_row_has_the_sums_over_stages_and_not_the_mean_of_their_ratios():
    def report(stage, sums):
        figures = {"time_s": 1.0, "trained_s": 1.0, "blocked_s": 0.0, "updates": 1, "gradients": 1}
        late = {"staleness_sum": 0, "staleness_max": 0, "staleness_counts": [1]}
        peaks = {"graphs_peak": 1, "inputs_peak": 1, "features_in_peak_depth": 1}
        peaks |= {f"{kind}_bytes_peak": 1 for kind in ("activation", "version", "mailbox")}
        moment = {"stage": stage, "step": 1, "epoch": 0}
        return {**moment, **figures, **late, **peaks, **({"sigma_sums": sums} if sums else {})}

    stages = [report(0, (1.0, 4.0)), report(1, (3.0, 1.0)), report(2, None), report(3, (0.0, 0.0))]
    (row,) = RowMerger(4).add(stages)
    assert row["sigma"] == 4 / 5
    assert row["stage_sigma"] == [0.25, 3.0, None, None]


def test_only_the_expected_batch_is_compared_and_only_once():
    direction = SufficientDirection()
    direction.expect(4, [torch.tensor([3.0, 4.0]), None])
    assert direction.compare(3, [torch.ones(2), None]) is None
    assert direction.compare(4, [torch.ones(2), torch.ones(5)]) == (7.0, 25.0)
    assert direction.compare(4, [torch.ones(2), None]) is None
