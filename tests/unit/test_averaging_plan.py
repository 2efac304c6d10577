"""The planner of averaging: DASGD's equations and its Table II, and the command that shows them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from raylab._torchvision import import_torchvision
from raylab.cli.main import main
from raylab.drivers.averaging.plan import AveragingQuestion
from raylab.errors import ConfigError
from raylab.planner import (
    AVERAGING_METHODS,
    AveragingPlan,
    Network,
    all_reduce_s,
    averaging_plan,
    plan_from_measured,
    scaled_ring_s,
)
from raylab.planner.published_table import PAPER_CLUSTERS, PAPER_NETWORKS, paper_table

pytestmark = pytest.mark.unit

RATES = {"ethernet_gbit_s": 8.0, "pcie_gbyte_s": 4.0}  # 1 and 4 GByte/s
RESNET50 = (
    "--model resnet50 --workers 256 --gpus-per-node 8 --ethernet-gbps 20 --pcie-gbps 16 "
    "--step-ms 526.05"
)


def answered(capsys: pytest.CaptureFixture[str], words: str) -> str:
    assert main(["plan", "averaging", *words.split()]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# --- the time of an average


def test_a_tree_goes_up_and_down_every_level_of_the_network_and_a_butterfly_only_up():
    network = Network(workers=32, workers_per_node=4, **RATES)  # 8 nodes of 4
    tree = 2 * 3 * 0.5 + 2 * 2 * 0.5 / 4
    assert all_reduce_s(5e8, network, "tree") == pytest.approx(tree)
    assert all_reduce_s(5e8, network, "butterfly") == pytest.approx(tree / 2)


def test_a_ring_moves_nearly_twice_the_bytes_at_the_pace_of_its_slowest_link():
    across = Network(workers=32, workers_per_node=4, **RATES)
    assert all_reduce_s(5e8, across, "ring") == pytest.approx(2 * 31 / 32 * 0.5)
    within = Network(workers=4, workers_per_node=4, **RATES)
    assert all_reduce_s(5e8, within, "ring") == pytest.approx(2 * 3 / 4 * 0.5 / 4)


def test_the_latency_counts_once_for_every_round():
    network = Network(workers=32, workers_per_node=4, latency_s=1.0, **RATES)
    times = [all_reduce_s(0, network, each) for each in ("tree", "butterfly", "ring")]
    assert times == [2 * (3 + 2), 3 + 2, 2 * 31]


@pytest.mark.parametrize("algorithm", ["tree", "butterfly", "ring"])
def test_one_worker_has_nobody_to_wait_for(algorithm):
    assert all_reduce_s(1e9, Network(workers=1), algorithm) == 0
    assert plan_from_measured(0.0, 1.0) == (1, 0)


def test_a_measured_ring_grows_as_the_formula_of_the_ring_does():
    sizes = [Network(workers=n, ethernet_gbit_s=8) for n in (2, 5, 256)]
    two, five, many = (all_reduce_s(1e8, each, "ring") for each in sizes)
    assert scaled_ring_s(two, 2, 256) == pytest.approx(many)
    assert scaled_ring_s(five, 5, 256) == pytest.approx(many)
    assert scaled_ring_s(five, 5, 5) == five
    with pytest.raises(ConfigError, match="`measured_workers >= 2` and `workers >= 1` must hold"):
        scaled_ring_s(1.0, 1, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "`workers >= 1` must hold, but got 0"),
        ({"workers": 12, "workers_per_node": 8}, "8 workers a node must divide the workers"),
        ({"workers": 2}, "2 nodes need the rate between them"),
        ({"workers": 2, "workers_per_node": 2}, "2 workers on a node need the rate between"),
        ({"workers": 2, "ethernet_gbit_s": 0.0}, "must be a rate > 0 in Gbit/s, but got 0.0"),
        ({"workers": 1, "pcie_gbyte_s": math.inf}, "must be a rate > 0 in GByte/s"),
        ({"workers": 1, "latency_s": -1.0}, "`latency_s >= 0` must hold"),
    ],
)
def test_a_network_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Network(**settings)


def test_an_unknown_average_or_a_negative_size_is_refused():
    with pytest.raises(ConfigError, match="one of tree, butterfly, ring, but got 'star'"):
        all_reduce_s(1.0, Network(workers=1), "star")
    with pytest.raises(ConfigError, match="`parameter_bytes >= 0` must hold"):
        all_reduce_s(-1.0, Network(workers=1), "ring")


# --- d and tau


@pytest.mark.parametrize(
    ("average", "step", "tau", "delay"),
    [(0.5, 1.0, 2, 1), (1.0, 1.0, 2, 1), (1.01, 1.0, 3, 2), (0.3, 0.1, 4, 3), (7.0, 2.0, 5, 4)],
)
def test_the_delay_is_the_smallest_that_hides_the_average(average, step, tau, delay):
    assert plan_from_measured(average, step) == (tau, delay)
    plan = AveragingPlan(tau=tau, delay=delay, step_s=step, all_reduce_s=average)
    assert plan.hidden
    later = AveragingPlan(tau=tau, delay=delay - 1, step_s=step, all_reduce_s=average)
    assert not later.hidden


def test_what_is_fixed_is_kept_and_the_rest_follows():
    assert plan_from_measured(2.5, 1.0, tau=8) == (8, 3)
    assert plan_from_measured(2.5, 1.0, tau=2) == (2, 1)
    assert plan_from_measured(2.5, 1.0, delay=1) == (2, 1)
    assert plan_from_measured(2.5, 1.0, delay=0, tau=4) == (4, 0)


@pytest.mark.parametrize(("tau", "delay"), [(0, None), (0, 0), (2, 2), (3, 5), (None, -1)])
def test_a_delay_of_tau_or_more_is_refused(tau, delay):
    with pytest.raises(ConfigError, match="`0 <= delay < tau` must hold"):
        plan_from_measured(1.0, 1.0, tau=tau, delay=delay)


@pytest.mark.parametrize(("average", "step"), [(1.0, 0.0), (1.0, math.nan), (-1.0, 1.0)])
def test_a_time_that_is_none_is_refused(average, step):
    with pytest.raises(ConfigError, match=r"the time of an? .* must be a number"):
        plan_from_measured(average, step)


# --- equations (4), (5) and (6)


def test_epochs_take_what_the_equations_say():
    compute, local, average, samples, batch, tau = 0.4, 0.1, 0.3, 5000, 128, 4
    plan = AveragingPlan(tau=tau, delay=1, step_s=compute + local, all_reduce_s=average)
    seconds = {
        method: plan.epoch_s(method, samples=samples, global_batch=batch)
        for method in AVERAGING_METHODS
    }
    assert seconds == {
        "minibatch_sgd": pytest.approx((compute + local + average) * samples / batch),
        "local_sgd": pytest.approx((compute + local + average / tau) * samples / batch),
        "dasgd": pytest.approx((compute + local) * samples / batch),
    }


def test_dasgd_without_delay_waits_like_local_sgd_and_else_for_the_rest_only():
    late = AveragingPlan(tau=4, delay=0, step_s=1.0, all_reduce_s=2.5)
    assert late.waits_s("dasgd") == late.waits_s("local_sgd") == 2.5 / 4
    assert AveragingPlan(tau=4, delay=2, step_s=1.0, all_reduce_s=2.5).waits_s("dasgd") == 0.5 / 4
    assert AveragingPlan(tau=1, delay=0, step_s=1.0, all_reduce_s=2.5).waits_s("dasgd") == 2.5


def test_an_unknown_method_or_an_empty_epoch_is_refused():
    plan = AveragingPlan(tau=2, delay=1, step_s=1.0, all_reduce_s=1.0)
    with pytest.raises(ConfigError, match="one of minibatch_sgd, local_sgd, dasgd"):
        plan.share("sgd")
    with pytest.raises(ConfigError, match="`samples >= 1` must hold, but got 0"):
        plan.epoch_s("dasgd", samples=0, global_batch=1)


# --- Table II


@pytest.mark.parametrize("name", PAPER_NETWORKS)
@pytest.mark.parametrize("cluster", PAPER_CLUSTERS)
def test_table_ii_comes_out_as_it_is_printed(name, cluster):
    printed = PAPER_NETWORKS[name].printed(cluster)
    size, network = 4 * PAPER_NETWORKS[name].parameters, PAPER_CLUSTERS[cluster]
    tree, butterfly = (1e3 * all_reduce_s(size, network, each) for each in ("tree", "butterfly"))
    assert tree == pytest.approx(printed.tree_ms, abs=0.02)
    assert butterfly == pytest.approx(printed.butterfly_ms, abs=0.02)
    plan = averaging_plan(size, printed.step_ms / 1e3, network)
    assert (plan.delay, plan.tau) == (printed.delay, printed.tau)


def test_the_shares_of_communication_of_resnet50_are_those_of_the_paper():
    shares = paper_table()["shares"]
    assert round(shares["minibatch_sgd"], 3) == 0.459
    assert round(shares["local_sgd"], 3) == 0.175
    assert shares["dasgd"] == 0


def without_batch_norm(name: str, num_classes: int = 1000) -> int:
    """Count as the paper's performance model does: a bias for each convolution, no batch norm."""
    with torch.device("meta"):
        options = {"init_weights": False} if name.startswith("vgg") else {}
        model = getattr(import_torchvision().models, name)(num_classes=num_classes, **options)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    biases = sum(m.weight.shape[0] for m in layers)
    return sum(m.weight.numel() for m in layers) + biases


def network_in_network() -> int:
    """Count Lin et al.'s network: (kernel, input channels, output channels) of its layers."""
    layers = [(11, 3, 96), (1, 96, 96), (1, 96, 96), (5, 96, 256), (1, 256, 256), (1, 256, 256)]
    layers += [(3, 256, 384), (1, 384, 384), (1, 384, 384)]
    layers += [(3, 384, 1024), (1, 1024, 1024), (1, 1024, 1000)]
    return sum(kernel**2 * given * made + made for kernel, given, made in layers)


def test_the_parameters_of_table_ii_are_counted_but_for_resnext50():
    counted = {
        "network_in_network": network_in_network(),
        "vgg16": without_batch_norm("vgg16"),
        "vgg19": without_batch_norm("vgg19"),
        "resnet50": without_batch_norm("resnet50"),
        "densenet121": without_batch_norm("densenet121"),
        "densenet201": without_batch_norm("densenet201", num_classes=10),
    }
    published = {name: network.parameters for name, network in PAPER_NETWORKS.items()}
    assert counted == {key: value for key, value in published.items() if key != "resnext50"}
    assert without_batch_norm("resnext50_32x4d") == 24_994_792
    assert without_batch_norm("wide_resnet50_2") == 68_849_128  # 32×4d with dense convolutions


# --- the command


def test_the_table_of_the_paper_is_one_json_object(capsys):
    table = json.loads(answered(capsys, "--table paper --json"))
    assert len(table["rows"]) == 14
    for row in table["rows"]:
        for name in ("tree_s", "butterfly_s"):
            assert row[name] == pytest.approx(row["paper"][name], abs=0.02e-3)
        assert (row["delay"], row["tau"]) == (row["paper"]["delay"], row["paper"]["tau"])


def test_a_plan_of_rates_is_one_json_object(capsys):
    plan = json.loads(answered(capsys, f"{RESNET50} --tau 4 --batch 32 --samples 81920 --json"))
    assert (plan["parameters"], plan["bytes"]) == (25_530_472, 4 * 25_530_472)
    averages = {row["algorithm"]: row for row in plan["averages"]}
    assert list(averages) == ["tree", "butterfly", "ring"]
    assert averages["tree"]["all_reduce_s"] == pytest.approx(0.44678, abs=2e-5)
    assert averages["tree"]["share"]["minibatch_sgd"] == pytest.approx(0.459, abs=5e-4)
    assert averages["tree"]["share"]["local_sgd"] == pytest.approx(0.175, abs=5e-4)
    assert plan["choice"] == {"algorithm": "tree", "tau": 4, "delay": 1, "hidden": True}
    methods = {row["method"]: row for row in plan["methods"]}
    assert methods["dasgd"]["epoch_s"] == pytest.approx(10 * 0.52605)
    assert methods["minibatch_sgd"]["epoch_s"] == pytest.approx(10 * (0.52605 + 0.44678), rel=1e-4)
    assert [(row["tau"], row["delay"]) for row in plan["methods"]] == [(1, 0), (4, 0), (4, 1)]


def test_the_all_reduce_that_is_asked_for_decides(capsys):
    slow = RESNET50.replace("526.05", "100")
    delays = [
        json.loads(answered(capsys, f"{slow} --json --all-reduce {name}"))["choice"]["delay"]
        for name in ("tree", "butterfly", "ring")
    ]
    assert delays == [5, 3, 1]


def test_a_model_with_classes_is_built_and_counted(capsys):
    words = "--workers 4 --ethernet-gbps 1 --step-ms 100 --json"
    own = json.loads(answered(capsys, f"--model resnet50 --classes 10 {words}"))
    assert own["parameters"] == 23_528_522
    assert json.loads(answered(capsys, f"--model mlp {words}"))["parameters"] == 855_050
    given = json.loads(answered(capsys, f"--parameters 500 --bytes-per-parameter 2 {words}"))
    assert (given["model"], given["bytes"]) == (None, 1000)


@pytest.mark.parametrize("words", [RESNET50, "--table paper"])
def test_tables_fit_the_terminal(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    text = answered(capsys, words)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "45.9%" in text


def test_what_is_shown_says_what_to_choose(capsys):
    text = answered(capsys, RESNET50)
    for said in ("resnet50: 25,530,472 parameters", "447 ms", "choose tau=2 delay=1", "76.1 s"):
        assert said in text
    assert "waits for what d steps do not hide" in answered(capsys, f"{RESNET50} --tau 1")


def test_help_has_an_example_and_the_units(capsys):
    assert main(["plan", "averaging", "--help"]) == 0
    text = capsys.readouterr().out
    for said in ("raylab plan averaging --model resnet50", "gigabits", "gigabytes", "  130  "):
        assert said in text
    assert main(["plan", "--help"]) == 0
    assert "raylab plan averaging --help" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "still needs --model NAME (or --parameters N), --step-ms TIME, --workers N"),
        ("--model resnet50 --workers 2 --step-ms 1", "still needs --ethernet-gbps RATE (between 2"),
        (
            "--model resnet50 --workers 8 --gpus-per-node 8 --step-ms 1",
            "still needs --pcie-gbps RATE (between 8 workers of a node)",
        ),
        ("--parameters 9 --measure", "needs --step-ms TIME (there is no model to time)"),
        ("--model mlp --parameters 3", "--parameters cannot stand beside --model"),
        ("--parameters 3 --classes 3", "--classes cannot stand beside --parameters"),
        ("--model mlp --measure --pcie-gbps 3", "--pcie-gbps cannot stand beside --measure"),
        ("--model mlp --measured-workers 3", "cannot stand beside a network that is given"),
        ("--table paper --model vgg16 --tau 3", "--model, --tau cannot stand beside --table"),
        ("--table paper --delay 0", "--delay cannot stand beside --table"),
        ("--table II", "invalid choice: 'II'"),
        ("--model mlp --workers 0", "--workers: must be an integer >= 1, but got '0'"),
        ("--model mlp --step-ms nan", "--step-ms: must be a number > 0, but got 'nan'"),
        ("--model mlp --step-ms 0", "--step-ms: must be a number > 0, but got '0'"),
        (f"{RESNET50} --delay -1", "--delay: must be an integer >= 0, but got '-1'"),
        (f"{RESNET50} --tau 2 --delay 2", "`0 <= delay < tau` must hold"),
        (f"{RESNET50} --workers 12", "8 workers a node must divide the workers, but got 12"),
        (f"{RESNET50} --model resnet5O", "or 'resnet50' or"),
        (f"{RESNET50} --model vgg19 --classes 10", "'vgg19' is known by its size only"),
        ("resnet50", "unrecognized arguments: resnet50"),
    ],
)
def test_bad_input_gets_one_error_that_says_what_is_missing(capsys, words, message):
    assert main(["plan", "averaging", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error:") == 1
    assert message in err


def test_a_question_that_cannot_be_answered_is_refused():
    with pytest.raises(ConfigError, match="either a model or a number of parameters"):
        AveragingQuestion(step_s=1.0)
    with pytest.raises(ConfigError, match="not of a size alone"):
        AveragingQuestion(parameters=3)
    with pytest.raises(ConfigError, match="the network has 1 workers, but got workers=2"):
        AveragingQuestion(model="mlp", network=Network(workers=1), workers=2)
