"""A run that goes on from any checkpoint ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import io
import random
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from actors.checkpoint_plan import CheckpointPlan
from raylab.algorithms.pipeline import PIPELINE_METHODS
from tests.helpers import even_cuts, run_pipeline
from tests.reference.networks import batches, conv_bn64, mlp64
from tests.reference.pipeline import Optimiser

pytestmark = pytest.mark.property

SGD = Optimiser(kind="sgd", lr=0.05, momentum=0.9, weight_decay=1e-2)
ADAM = Optimiser(kind="adam", lr=0.01, weight_decay=1e-2)
EPOCHS = [batches("conv", 7, ragged=True, seed=s) for s in (3, 4)]


class Dropping(nn.Sequential):
    """A block that draws."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block, nn.Dropout(0.3))


def network(kind: str) -> nn.Sequential:
    model = conv_bn64(1) if kind == "conv" else mlp64(1)
    model[1] = Dropping(model[1])
    return model


def through_files(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What comes back from a disk: copies, and nothing but safe types."""
    found = []
    for part in parts:
        file = io.BytesIO()
        torch.save(part, file)
        file.seek(0)
        found.append(torch.load(file, weights_only=True))
    return found


def saved_parts(every: int = 1, **given: Any) -> tuple[Any, dict[int, list[dict[str, Any]]]]:
    """Run to the end with a checkpoint at every batch; return the run and the parts by step.

    They are written to a file only when they are needed, which is after the run: what was written
    to in the meantime would be found out.
    """
    parts: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)

    def save(step: int, part: dict[str, Any]) -> None:
        parts[step][part["stage"]] = part

    window = given.get("accumulate", 1) if given["method"] in ("gpipe", "1f1b") else 1
    plan = CheckpointPlan(every_batches=every, window=window)
    found = run_pipeline(**given, checkpoints=plan, save=save)
    stages = len(given["cuts"]) + 1
    whole = {step: [each[k] for k in range(stages)] for step, each in parts.items()}
    return found, whole


def assert_identical(found: Any, expected: Any) -> None:
    state = expected.model.state_dict()
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def what_counts(row: dict[str, Any]) -> dict[str, Any]:
    """Times differ, peaks before a checkpoint are over, and markers are messages."""
    return {k: v for k, v in row.items() if not k.endswith(("_s", "_messages")) and "peak" not in k}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("method", PIPELINE_METHODS)
def test_every_checkpoint_leads_to_the_same_weights_and_figures(method, accumulate):
    given: dict[str, Any] = {
        "model": network("conv"),
        "method": method,
        "cuts": [2, 4, 7],
        "epochs": EPOCHS,
        "accumulate": accumulate,
        "optimiser": ADAM if accumulate == 3 else SGD,
        "lr_factor": lambda s: 1 / (1 + 0.3 * s),
        "test": batches("conv", 2, seed=9),
    }
    undisturbed = run_pipeline(**given)
    found, checkpoints = saved_parts(**given)
    assert_identical(found, undisturbed)
    window = accumulate if method in ("gpipe", "1f1b") else 1
    assert sorted(checkpoints) == [n for n in range(1, 14) if n % window == 0]
    for step in (2, 7, 11) if window == 1 else (3, 12):
        resumed = run_pipeline(**given, parts_saved=through_files(checkpoints[step]))
        assert_identical(resumed, undisturbed)
        rows = [what_counts(row) for row in undisturbed.rows]
        for row in resumed.rows:
            assert what_counts(row) in rows
        assert len(resumed.rows) == (8 if step < 7 else 4)
        assert [r.remains() for r in resumed.runners] == [{}] * 4


@pytest.mark.parametrize("method", ["adl", "fr", "gpipe", "dni", "dgl"])
def test_what_single_samples_did_in_an_open_window_is_in_a_checkpoint(method):
    given: dict[str, Any] = {
        "model": network("conv"),
        "method": method,
        "cuts": [2, 5],
        "epochs": EPOCHS[:1],
        "accumulate": 3,
        "optimiser": Optimiser(kind="clars", lr=0.9, momentum=0.9, weight_decay=1e-2, trust=0.02),
    }
    found, checkpoints = saved_parts(every=3 if method == "gpipe" else 1, **given)
    for step in (3,) if method == "gpipe" else (2, 4):
        resumed = run_pipeline(**given, parts_saved=through_files(checkpoints[step]))
        assert_identical(resumed, found)
        assert what_counts(resumed.rows[-1]) == what_counts(found.rows[-1])
        assert len(resumed.rows[-1]["layer_rates"]) == len(resumed.rows[-1]["layer_variances"]) > 0


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_resume_bit_for_bit_under_shuffled_deliveries(seed):
    draw = random.Random(seed)
    model = network(draw.choice(["conv", "mlp"]))
    kind = "conv" if len(model) == 9 and isinstance(model[3], nn.AvgPool2d) else "mlp"
    stages = draw.randint(1, 5)
    method = draw.choice(["ddg", "fr", "adl"])
    given: dict[str, Any] = {
        "model": model,
        "method": method,
        "cuts": even_cuts(model, stages),
        "epochs": [batches(kind, draw.randint(1, 6), seed=s) for s in range(3)],
        "accumulate": draw.randint(1, 4),
        "gradient_shrink": draw.choice([1.0, 0.7]),
        "optimiser": draw.choice([SGD, ADAM]),
        "link_delays": [draw.randint(0, 3) for _ in range(stages - 1)],
        "weight_version": draw.choice(["forward", "current"]),
        "recompute": False,
        "barrier": draw.random() < 0.3,
    }
    if method != "fr" and given["weight_version"] == "forward":
        given["recompute"] = draw.random() < 0.5
    undisturbed = run_pipeline(**given)
    found, checkpoints = saved_parts(**given, shuffle=draw)
    assert_identical(found, undisturbed)
    # Killed and resumed again and again, each time from a checkpoint of the run before.
    step = 0
    while later := [s for s in checkpoints if s > step]:
        step = draw.choice(later)
        resumed, checkpoints = saved_parts(
            **given, parts_saved=through_files(checkpoints[step]), shuffle=random.Random(seed)
        )
        assert_identical(resumed, undisturbed)


@pytest.mark.parametrize("method", ["fr", "adl"])
def test_a_run_that_measures_sigma_goes_on_with_the_same_weights(method):
    given: dict[str, Any] = {
        "model": network("mlp"),
        "method": method,
        "cuts": [3, 6],
        "epochs": [batches("mlp", 7, seed=s) for s in range(2)],
        "optimiser": ADAM,
    }
    plain = run_pipeline(**given).model.state_dict()
    _, checkpoints = saved_parts(**given, sigma_every=2)
    for step in (3, 6, 9):
        parts = through_files(checkpoints[step])
        resumed = run_pipeline(**given, sigma_every=2, parts_saved=parts)
        for name, tensor in resumed.model.state_dict().items():
            assert torch.equal(tensor, plain[name])
        assert any("sigma_sums" in row for row in resumed.rows)


def test_a_shuffling_data_loader_gives_the_same_batches_again():
    x = torch.arange(60, dtype=torch.float64).reshape(20, 3)
    loader = DataLoader(TensorDataset(x, torch.arange(20) % 2), batch_size=3, shuffle=True)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    given: dict[str, Any] = {
        "model": model,
        "method": "adl",
        "cuts": [2],
        "epochs": [loader] * 3,
        "optimiser": Optimiser(kind="sgd", lr=0.001),
    }
    undisturbed = run_pipeline(**given)
    _, checkpoints = saved_parts(**given)
    assert len(checkpoints) == 20
    for step in (3, 7, 12, 20):
        resumed = run_pipeline(**given, parts_saved=through_files(checkpoints[step]))
        assert_identical(resumed, undisturbed)
