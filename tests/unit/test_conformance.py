"""One table of all pipeline methods, one suite: equal to the serial reference of the equations."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raylab.algorithms.pipeline import PIPELINE_METHODS, adl_staleness, ddg_staleness
from tests.helpers import even_cuts, run_pipeline, torch_optimiser
from tests.reference import pipeline as reference
from tests.reference.networks import batches, conv_bn64, mlp64
from tests.reference.pipeline import Optimiser, eq17

pytestmark = pytest.mark.unit

SGD = Optimiser(kind="sgd", lr=0.05, momentum=0.9, weight_decay=1e-2)
ADAM = Optimiser(kind="adam", lr=0.01, weight_decay=1e-2)
OPTIMISERS = {"sgd": SGD, "adam": ADAM}
NETWORKS = {"conv": conv_bn64, "mlp": mlp64}
METHODS = tuple(PIPELINE_METHODS)
# ADL's delays with FR's replay: as each is in the whole table, a part of it is enough for both.
IN_PART = ("dsp", "dni", "dgl")


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 1e-10):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=1e-13, msg=name)


def epochs_of(network: str, count: int = 5) -> list[list[tuple[Tensor, Tensor]]]:
    return [batches(network, count, ragged=True, seed=s) for s in (3, 4)]


def whole_table() -> list[tuple[int, int, str, str]]:
    """Every K, M and network; the optimisers take turns over the three.

    An update does not know what its gradient is made of, so it is enough that each optimiser meets
    every value of every column.
    """
    columns = itertools.product(
        enumerate([1, 2, 3, 4, 8]), enumerate([1, 2, 4]), enumerate(NETWORKS)
    )
    return [
        (stages, accumulate, network, ("sgd", "adam")[(i + j + k) % 2])
        for (i, stages), (j, accumulate), (k, network) in columns
    ]


@pytest.mark.parametrize(("stages", "accumulate", "network", "optimiser"), whole_table())
@pytest.mark.parametrize("method", [m for m in METHODS if m not in IN_PART])
def test_equals_the_serial_reference(method, stages, accumulate, network, optimiser):
    check_against_the_reference(method, stages, accumulate, network, OPTIMISERS[optimiser])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("stages", "accumulate", "optimiser"),
    [(1, 1, SGD), (2, 2, ADAM), (3, 1, SGD), (3, 2, ADAM), (4, 2, SGD), (8, 1, ADAM)],
)
def test_dsp_equals_the_serial_reference(stages, accumulate, optimiser, network):
    check_against_the_reference("dsp", stages, accumulate, network, optimiser)


@pytest.mark.parametrize(("method", "beta"), [("ddg", 0.5), ("fr", 0.9), ("adl", 0.7)])
def test_shrunk_gradients_equal_the_reference(method, beta):
    check_against_the_reference(method, 4, 2, "conv", ADAM, gradient_shrink=beta)
    check_against_the_reference(method, 3, 1, "mlp", SGD, gradient_shrink=beta)


def test_a_stage_has_the_shrink_to_the_power_of_its_distance_to_the_loss():
    model = mlp64(4)
    data = [batches("mlp", 1, seed=1)]
    given = {"method": "ddg", "cuts": [3, 6], "epochs": data}
    plain = Optimiser(kind="sgd", lr=1.0)
    whole, shrunk = (
        run_pipeline(model, optimiser=plain, gradient_shrink=beta, **given).model.state_dict()
        for beta in (1.0, 0.5)
    )
    for name, before in model.state_dict().items():
        links = 2 - int(name.split(".")[0]) // 3
        torch.testing.assert_close(shrunk[name] - before, (whole[name] - before) * 0.5**links)


def check_against_the_reference(method, stages, accumulate, network, optimiser, **more):
    model = NETWORKS[network](1)
    before = copy.deepcopy(model.state_dict())
    given = {
        "method": method,
        "cuts": even_cuts(model, stages),
        "epochs": epochs_of(network),
        "accumulate": accumulate,
        "optimiser": optimiser,
        "loss_fn": F.cross_entropy,
        "lr_factor": lambda s: 1 / (1 + 0.3 * s),
        **more,
    }
    found = run_pipeline(model, **given)
    expected = reference.train(model, **given)
    assert_equal(found.model.state_dict(), expected.state)
    assert found.staleness == expected.staleness
    assert [rule.window.updates for rule in found.rules] == expected.updates
    assert_equal(model.state_dict(), before, rtol=0)
    # Every batch's gradient was applied once by every stage, and nothing is left anywhere.
    for runner in found.runners:
        assert runner.loop.batches == 10
        assert runner.remains() == {}
    counts = [t for name, t in expected.state.items() if name.endswith("num_batches_tracked")]
    assert all(int(count) == 10 for count in counts)


@pytest.mark.parametrize(
    ("kind", "method", "stages", "accumulate", "network"),
    [
        ("clars", "adl", 3, 2, "conv"),
        ("clars", "fr", 3, 1, "conv"),
        ("clars", "gpipe", 2, 2, "conv"),
        ("clars", "adl", 4, 1, "mlp"),
        ("lars", "adl", 3, 2, "conv"),
        ("nag", "ddg", 3, 1, "mlp"),
    ],
)
def test_rates_of_layers_equal_the_reference(kind, method, stages, accumulate, network):
    optimiser = Optimiser(kind=kind, lr=0.9, momentum=0.9, weight_decay=1e-2, trust=0.02)
    check_against_the_reference(method, stages, accumulate, network, optimiser)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("stages", [2, 3, 8])
@pytest.mark.parametrize("method", ["ddg", "adl"])
def test_current_weight_version_equals_the_reference(method, stages, network):
    model = NETWORKS[network](2)
    given = {
        "method": method,
        "cuts": even_cuts(model, stages),
        "epochs": epochs_of(network),
        "accumulate": 2,
        "optimiser": SGD,
        "loss_fn": F.cross_entropy,
        "weight_version": "current",
    }
    found = run_pipeline(model, **given)
    assert_equal(found.model.state_dict(), reference.train(model, **given).state)
    forward = reference.train(model, **{**given, "weight_version": "forward"}).state
    assert any(not torch.allclose(found.model.state_dict()[k], v) for k, v in forward.items())


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("delays", [[0, 2, 1], [3, 0, 0], [1, 1, 4]])
def test_any_link_delays_equal_the_family_of_the_reference(delays, replay):
    model = conv_bn64(5)
    given = {
        "cuts": [2, 4, 7],
        "epochs": epochs_of("conv"),
        "accumulate": 2,
        "optimiser": ADAM,
        "loss_fn": F.cross_entropy,
        "link_delays": delays,
    }
    found = run_pipeline(model, method="fr" if replay else "ddg", **given)
    expected = reference.train(model, method="family", replay=replay, **given)
    assert_equal(found.model.state_dict(), expected.state)
    assert found.staleness == expected.staleness


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("method", METHODS)
def test_one_stage_is_plain_torch_training(method, optimiser):
    model = conv_bn64(6)
    parts = 4 if PIPELINE_METHODS[method].micro_batches else 1
    given = {"cuts": [], "epochs": epochs_of("conv"), "optimiser": OPTIMISERS[optimiser]}
    found = run_pipeline(model, method=method, micro_batches=1, **given)
    plain = copy.deepcopy(model).train()
    rule = torch_optimiser(OPTIMISERS[optimiser])(plain.parameters())
    for x, y in (batch for epoch in given["epochs"] for batch in epoch):
        rule.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        rule.step()
    assert_equal(found.model.state_dict(), plain.state_dict())
    if parts > 1:  # micro-batches really are another computation under batch normalisation
        cut = run_pipeline(model, method=method, micro_batches=parts, **given)
        assert not torch.allclose(cut.model[0][0].weight, plain[0][0].weight, rtol=1e-6)


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
@pytest.mark.parametrize("method", ["bp", "gpipe", "1f1b"])
def test_synchronous_methods_equal_back_propagation_in_one_process(method, stages):
    model = mlp64(7)
    data = epochs_of("mlp")
    found = run_pipeline(
        model, method=method, cuts=even_cuts(model, stages), epochs=data, optimiser=ADAM
    )
    alone = run_pipeline(model, method="bp", cuts=[], epochs=data, optimiser=ADAM)
    assert_equal(found.model.state_dict(), alone.model.state_dict())


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_staleness_is_that_of_equation_17(stages, accumulate):
    model = mlp64(8)
    data = [batches("mlp", 40, size=2, seed=1)]
    found = run_pipeline(
        model,
        method="adl",
        cuts=even_cuts(model, stages),
        epochs=data,
        optimiser=SGD,
        accumulate=accumulate,
    )
    for k in range(1, stages + 1):
        delay = 2 * (stages - k)
        for s in range(math.ceil(delay / accumulate), 40 // accumulate):
            expected = [eq17(stages, k, accumulate, s, j) for j in range(accumulate)]
            assert found.staleness[k - 1][s] == expected
            assert expected == [
                adl_staleness(s, j, accumulate=accumulate, delay=delay) for j in range(accumulate)
            ]


@pytest.mark.parametrize("method", ["ddg", "fr"])
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_staleness_of_ddg_and_features_replay_is_the_distance_to_the_loss(method, stages):
    model = mlp64(8)
    found = run_pipeline(
        model,
        method=method,
        cuts=even_cuts(model, stages),
        epochs=[batches("mlp", 20, size=2, seed=1)],
        optimiser=SGD,
    )
    for k in range(1, stages + 1):
        seen = {each for window in found.staleness[k - 1] for each in window}
        assert seen == {ddg_staleness(stages, k)}


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize(
    ("method", "graphs", "inputs"),
    [
        ("bp", lambda left: 1, lambda left: 1),
        ("ddg", lambda left: left + 1, lambda left: left + 1),
        ("adl", lambda left: 2 * left + 1, lambda left: 2 * left + 1),
        ("fr", lambda left: 1, lambda left: left + 1),
        ("dsp", lambda left: 1, lambda left: 2 * left + 1),
        ("1f1b", lambda left: min(8, left + 1), lambda left: min(8, left + 1)),
        ("gpipe", lambda left: 8, lambda left: 8),
    ],
)
def test_what_is_in_flight_stays_within_its_bound(method, graphs, inputs, stages):
    model = mlp64(9)
    found = run_pipeline(
        model,
        method=method,
        cuts=even_cuts(model, stages),
        # Enough to fill the longest of them once; a flush fills it with every batch.
        epochs=[batches("mlp", 3 if PIPELINE_METHODS[method].flush else 16, size=8, seed=1)],
        optimiser=SGD,
        micro_batches=8,
    )
    by_stage = sorted(found.rows, key=lambda row: row["stage"])
    assert [row["graphs_peak"] for row in by_stage] == [
        graphs(stages - 1 - k) for k in range(stages)
    ]
    assert [row["inputs_peak"] for row in by_stage] == [
        inputs(stages - 1 - k) for k in range(stages)
    ]


@pytest.mark.parametrize("method", [m for m in METHODS if m in reference.METHODS])
def test_testing_between_epochs_sees_the_weights_of_one_index_and_changes_nothing(method):
    model = conv_bn64(10)
    data = epochs_of("conv")
    test = batches("conv", 3, ragged=True, seed=9)
    given = {
        "method": method,
        "cuts": [2, 4, 7],
        "epochs": data,
        "optimiser": SGD,
        "accumulate": 2,
        "loss_fn": F.cross_entropy,
    }
    found = run_pipeline(model, test=test, **given)
    assert_equal(found.model.state_dict(), run_pipeline(model, **given).model.state_dict(), rtol=0)
    expected = reference.train(model, **given)
    rows = [row for row in found.rows if row["stage"] == 3]
    # After the last epoch the pipeline has emptied: the test is of the weights that are returned.
    for row, state in zip(rows, (expected.epoch_states[0], expected.state), strict=True):
        twin = copy.deepcopy(model)
        twin.load_state_dict(state)
        twin.eval()
        with torch.no_grad():
            losses = [float(F.cross_entropy(twin(x), y)) * len(x) for x, y in test]
            hits = sum(int((twin(x).argmax(1) == y).sum()) for x, y in test)
        samples = sum(len(x) for x, _ in test)
        assert row["test_loss"] == pytest.approx(sum(losses) / samples, rel=1e-10)
        assert row["test_accuracy"] == pytest.approx(hits / samples)


def test_reported_loss_and_accuracy_are_means_over_samples():
    model = mlp64(11)
    data = batches("mlp", 4, ragged=True, seed=2)
    frozen = Optimiser(kind="sgd", lr=0.0)
    found = run_pipeline(model, method="adl", cuts=[3, 6], epochs=[data], optimiser=frozen)
    row = next(row for row in found.rows if row["stage"] == 2)
    with torch.no_grad():
        outputs = torch.cat([model(x) for x, _ in data])
    labels = torch.cat([y for _, y in data])
    assert row["samples"] == len(labels)
    assert row["loss"] == pytest.approx(float(F.cross_entropy(outputs, labels)), rel=1e-12)
    assert row["accuracy"] == pytest.approx(float((outputs.argmax(1) == labels).double().mean()))


@pytest.mark.parametrize("method", ["gpipe", "1f1b", "adl"])
def test_a_loss_that_sums_counts_micro_batches_once(method):
    model = mlp64(12)
    data = epochs_of("mlp")
    given = {"method": method, "epochs": data, "optimiser": Optimiser(kind="sgd", lr=0.001)}
    loss = nn.CrossEntropyLoss(reduction="sum")
    found = run_pipeline(model, cuts=[], loss_fn=loss, **given)
    plain = copy.deepcopy(model)
    rule = torch.optim.SGD(plain.parameters(), lr=0.001)
    for x, y in (batch for epoch in data for batch in epoch):
        rule.zero_grad()
        loss(plain(x), y).backward()
        rule.step()
    assert_equal(found.model.state_dict(), plain.state_dict())
