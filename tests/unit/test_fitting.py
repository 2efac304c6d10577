"""Values that fit no run are refused, or told, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raylab import PipelineTrainer
from raylab.cli.main import main
from raylab.config import PipelineConfig
from raylab.config.objectives import objectives_of
from raylab.data import load
from raylab.drivers.averaging.settings import AveragingSettings, workers_of
from raylab.drivers.averaging.settings import fitting_notes as averaging_notes
from raylab.drivers.ingredients import data_notes, model_of
from raylab.drivers.pipeline.fitting import fitting_notes
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.errors import ConfigError, DataError

pytestmark = pytest.mark.unit


def noted(method: str, stages: int = 2, *, samples: int = 8, total: int = 5, **keys: Any) -> str:
    settings = PipelineSettings(method=method, stages=stages, **keys)
    return " | ".join(fitting_notes(settings, samples=samples, batches=total, epochs=1))


@pytest.mark.parametrize("method", ["bp", "gpipe", "1f1b", "ddg", "fr", "adl", "dsp", "dni", "dgl"])
def test_settings_that_fit_are_not_spoken_of(method: str) -> None:
    assert noted(method, samples=64, total=100) == ""


def test_a_delay_that_no_gradient_outlasts_is_refused() -> None:
    assert noted("ddg", stages=3, delay=(1, 3), total=5) == ""
    with pytest.raises(ConfigError, match=r"delay=\[2, 3\], by which the first of 3 stages waits"):
        noted("ddg", stages=3, delay=(2, 3), total=5)
    with pytest.raises(ConfigError, match="waits for 4 batches, and a run of 4"):
        noted("adl", stages=3, delay=2, total=4)
    # It is the method's own: the run is short, and nobody has asked for a delay.
    assert "all of its gradients are of the weights that it begins with" in noted(
        "adl", stages=4, total=6
    )
    assert noted("adl", stages=4, total=7) == ""


def test_a_delay_is_refused_before_ray_starts() -> None:
    blocks = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    batches = [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))]
    trainer = PipelineTrainer(blocks, nn.CrossEntropyLoss(), method="ddg", delay=9)
    with pytest.raises(ConfigError, match="lower the delay, or raise epochs"):
        trainer.fit(batches, epochs=9)


def test_what_has_no_effect_is_told() -> None:
    assert "micro_batches=9 is more than the 8 samples" in noted("gpipe", micro_batches=9)
    assert noted("gpipe", micro_batches=8) == ""
    assert "is for gpipe and 1f1b, bp has no use" in noted("bp", micro_batches=8)
    assert "bp are not late" in noted("bp", weight_version="current")
    assert noted("ddg", weight_version="current") == ""
    assert "accumulate=6 is more than the 5 batches" in noted("bp", accumulate=6)
    assert noted("bp", accumulate=5) == ""


def test_keys_beyond_the_data_are_told() -> None:
    data = load("digits", batch_size=64)
    keys = {"batch_size": 1438, "warmup_epochs": 3.0, "freeze_fc_epochs": 2.0, "epochs": 2}
    said = " | ".join(data_notes(PipelineConfig(**keys), data))
    assert "batch_size=1438 is more than the 1437 training samples" in said
    assert "warmup_epochs=3 is more than epochs=2" in said
    assert "linear layers are never trained" in said
    assert data_notes(PipelineConfig(batch_size=1437, warmup_epochs=1.0, epochs=1), data) == []


def test_averages_that_never_come_are_told() -> None:
    settings = AveragingSettings(method="local_sgd", least=2, most=2, tau=6)
    assert "tau=6 is more than the 5 local steps" in averaging_notes(settings, 10, 1)[0]
    assert averaging_notes(settings, 10, 2) == []
    crowd = AveragingSettings(method="minibatch_sgd", least=11, most=11)
    assert "11 workers are more than the 10 batches" in averaging_notes(crowd, 10, 1)[0]
    with pytest.raises(ConfigError, match="workers <= 10000 must hold"):
        workers_of(10**11)


def test_images_beyond_memory_are_refused_before_they_are_made() -> None:
    for spec, size in (("random:n=4000000000,shape=3x4000x4000", None), ("digits", 10**8)):
        with pytest.raises(DataError, match="images must fit into memory, but"):
            load(spec, batch_size=1, image_size=size)


def test_a_network_beyond_memory_is_one_line() -> None:
    data = load("digits", batch_size=1)
    for width in (10**14, 10**30):
        with pytest.raises(ConfigError) as caught:
            model_of(PipelineConfig(model="fcn5", model_options={"width": width}), data)
        assert "\n" not in str(caught.value)


def test_labels_that_are_identifiers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    images, labels = np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 2, 10**12])
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(DataError, match=r"the largest of 4 labels in .* is 1000000000000"):
        load(f"npz:{path}", batch_size=2)


@pytest.mark.parametrize(
    ("family", "until", "rule"),
    [
        ("pipeline", {"test_accuracy": 95}, "must be a share from 0 to 1, but got 95"),
        ("parameter_server", {"accuracy": 1.5}, "must be a share from 0 to 1"),
        ("averaging", {"loss": -0.1}, "must be >= 0, as loss is never less"),
        ("parameter_server", {"duality_gap": -1e-9}, "must be >= 0, as duality_gap is never less"),
        ("pipeline", {"loss": float("nan")}, "must be finite"),
    ],
)
def test_a_target_that_no_run_comes_to_is_refused(
    family: str, until: dict[str, float], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        objectives_of([{"metric": "time_s", "until": until}], family)


def test_a_primal_value_below_zero_may_be_a_target() -> None:
    assert objectives_of([{"metric": "time_s", "until": {"primal": -2}}], "parameter_server")


@pytest.mark.parametrize("name", ["../x", "a/b", ".."])
@pytest.mark.parametrize(
    "command", [["compare", "methods=bp,ddg"], ["simulate", "dasgd"], ["simulate", "dis_dfsdca"]]
)
def test_a_name_that_leads_elsewhere_is_refused_by_every_command(
    command: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    assert main([*command, f"name={name}", f"storage={storage}", "--quiet"]) == 2
    assert f"name must be one plain folder name, but got '{name}'" in capsys.readouterr().err
    assert [each for each in tmp_path.iterdir() if each != storage] == []
