"""DNI and DGL in whole pipelines: equal to the serial reference of their equations."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import companion_state, even_cuts, run_pipeline
from tests.reference.decoupled import train_decoupled
from tests.reference.networks import batches
from tests.reference.pipeline import Optimiser
from tests.unit.test_conformance import ADAM, NETWORKS, SGD, assert_equal, epochs_of

pytestmark = pytest.mark.unit

SGD_PLAIN = Optimiser(kind="sgd", lr=0.05)
CASES = [
    ("mlp", 1, 1, SGD),
    ("mlp", 2, 1, ADAM),
    ("mlp", 2, 2, SGD),
    ("mlp", 3, 2, ADAM),
    ("mlp", 4, 1, SGD),
    ("mlp", 8, 2, ADAM),
    ("conv", 2, 2, ADAM),
    ("conv", 3, 1, SGD),
    ("conv", 4, 2, ADAM),
]


def check(model, method, cuts, network, optimiser, *, link_delays=None, accumulate=1, **more):
    before = copy.deepcopy(model.state_dict())
    given = {
        "method": method,
        "cuts": cuts,
        "epochs": epochs_of(network),
        "optimiser": optimiser,
        "accumulate": accumulate,
        "lr_factor": lambda s: 1 / (1 + 0.3 * s),
    }
    found = run_pipeline(model, link_delays=link_delays, **given, **more)
    expected = train_decoupled(model, beside=found.companions, corrected_after=link_delays, **given)
    assert_equal(found.model.state_dict(), expected.state)
    for rule, beside in zip(found.rules, expected.beside, strict=True):
        assert_equal(companion_state(rule), {name: beside[name] for name in companion_state(rule)})
    assert_equal(model.state_dict(), before, rtol=0)
    for runner in found.runners:
        assert runner.remains() == {}
    return found, expected


@pytest.mark.parametrize(("network", "stages", "accumulate", "optimiser"), CASES)
@pytest.mark.parametrize("method", ["dni", "dgl"])
def test_equals_the_serial_reference(method, network, stages, accumulate, optimiser):
    model = NETWORKS[network](1)
    cuts = even_cuts(model, stages)
    check(model, method, cuts, network, optimiser, accumulate=accumulate)


@pytest.mark.parametrize("delays", [[0, 0, 0], [3, 0, 1], [12, 2, 2]])
def test_any_delay_of_the_corrections_equals_the_reference(delays):
    # 12 links later is more than there are batches: all corrections are made in the drain.
    model = NETWORKS["mlp"](2)
    check(model, "dni", [2, 4, 7], "mlp", SGD, link_delays=delays, accumulate=2)


@pytest.mark.parametrize("method", ["dni", "dgl"])
def test_late_and_shuffled_messages_change_no_weight(method):
    model = NETWORKS["mlp"](3)
    given = {"method": method, "cuts": [2, 4, 7], "epochs": epochs_of("mlp"), "optimiser": ADAM}
    plain = run_pipeline(model, **given)
    for seed in range(3):
        shuffled = run_pipeline(model, shuffle=random.Random(seed), **given)
        assert_equal(shuffled.model.state_dict(), plain.model.state_dict(), rtol=0)


def test_a_stage_reports_the_loss_of_its_own_classifier_and_the_last_that_of_the_network():
    model = NETWORKS["conv"](4)
    found, expected = check(model, "dgl", [2, 5, 7], "conv", SGD)
    sizes = [len(x) for epoch in epochs_of("conv") for x, _ in epoch]
    for k, losses in enumerate(expected.losses):
        rows = [row for row in found.rows if row["stage"] == k]
        total = sum(row["loss"] * row["samples"] for row in rows)
        weighed = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
        assert total == pytest.approx(weighed, rel=1e-10)
        assert all(row["staleness_max"] == 0 and row["graphs_peak"] == 1 for row in rows)


def test_a_stage_reports_the_squared_error_of_its_synthesizer_and_the_last_none():
    model = NETWORKS["conv"](5)
    found, expected = check(model, "dni", [2, 5, 7], "conv", SGD)
    for k, errors in enumerate(expected.errors):
        rows = [row for row in found.rows if row["stage"] == k]
        if k == 3:
            assert all("synthesis_mse" not in row for row in rows)
            continue
        # Of the first epoch's five batches one is corrected in the second, as its link is late.
        assert rows[0]["synthesis_mse"] == pytest.approx(sum(errors[:4]) / 4, rel=1e-10)
        assert rows[1]["synthesis_mse"] == pytest.approx(sum(errors[4:]) / 6, rel=1e-10)
        assert all(row["inputs_peak"] == 2 for row in rows)


@pytest.mark.parametrize("method", ["dni", "dgl"])
def test_a_pipeline_of_one_stage_is_back_propagation(method):
    model = NETWORKS["conv"](6)
    given = {"cuts": [], "epochs": epochs_of("conv"), "optimiser": ADAM}
    found, alone = (run_pipeline(model, method=m, **given) for m in (method, "bp"))
    assert_equal(found.model.state_dict(), alone.model.state_dict(), rtol=0)


def test_a_synthesizer_that_knows_nothing_yet_leaves_its_stage_where_it_is():
    model = NETWORKS["mlp"](7)
    data = [batches("mlp", 1, seed=1)]
    found = run_pipeline(model, method="dni", cuts=[3, 6], epochs=data, optimiser=SGD_PLAIN)
    after = found.model.state_dict()
    for name, before in model.state_dict().items():
        assert torch.equal(after[name], before) == (int(name.split(".")[0]) < 6)


def test_testing_between_epochs_changes_nothing():
    for method in ("dni", "dgl"):
        model = NETWORKS["conv"](8)
        given = {"method": method, "cuts": [2, 5], "epochs": epochs_of("conv"), "optimiser": SGD}
        test = batches("conv", 2, ragged=True, seed=9)
        plain, tested = run_pipeline(model, **given), run_pipeline(model, test=test, **given)
        assert_equal(tested.model.state_dict(), plain.model.state_dict(), rtol=0)
        row = tested.rows[-1]
        twin = copy.deepcopy(tested.model).eval()
        with torch.no_grad():
            losses = [float(F.cross_entropy(twin(x), y)) * len(x) for x, y in test]
        assert row["test_loss"] == pytest.approx(sum(losses) / sum(len(x) for x, _ in test))
