"""`raylab plan` and cuts by measured times, on real actors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from raylab.cli.main import main

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

SMALL = ("model=mlp", "model_options.hidden=[32,32,16]", "stages=3", "wait_s=120")
SMALL_STAGES = ("cpus_per_stage=0.1", *SMALL)


def test_a_plan_times_stages_and_links_and_predicts_every_method(capsys, tmp_path):
    words = [*SMALL_STAGES, "balance=measured", f"storage={tmp_path}", "--json"]
    assert main(["plan", "pipeline", "fr", *words]) == 0
    out, err = capsys.readouterr()
    steps = [
        line
        for line in err.splitlines()
        if line.startswith(("starting", "timing", "ending", "predict"))
    ]
    assert steps[0].startswith("starting Ray and")
    assert any("timing" in line for line in steps)
    assert len(steps) == len(err.splitlines())
    plan = json.loads(out.splitlines()[-1])
    assert len(plan["cuts"]) == 2
    assert all(stage["forward_s"] > 0 < stage["backward_s"] for stage in plan["stages"])
    assert sum(stage["share"] for stage in plan["stages"]) == pytest.approx(1)
    assert all(link["message_s"] > 0 < link["handling_s"] for link in plan["links"])
    methods = {row["method"]: row for row in plan["methods"]}
    assert all(row["samples_per_s"] > 0 for row in methods.values())
    for row in methods.values():
        ratio = row["samples_per_s"] / methods["bp"]["samples_per_s"]
        assert row["speed_up"] == pytest.approx(ratio)
    assert all(delay >= 1 for delay in methods["auto"]["delays"])
    assert plan["choice"]["method"] in methods
    assert list(tmp_path.iterdir()) == []


def test_measured_cuts_are_written_down_and_repeat_the_run(capsys, tmp_path):
    words = [*SMALL_STAGES, f"storage={tmp_path}"]
    assert main(["train", "ddg", *words, "balance=measured", "name=b1"]) == 0
    said = capsys.readouterr().err
    assert "samples/s expected" in said
    config = yaml.safe_load((tmp_path / "b1" / "config.yaml").read_text())
    assert (len(config["stages"]), config["balance"]) == (2, "counted")
    assert config["measured"]["balance"] == "measured"
    assert config["measured"]["predicted_samples_per_s"] > 0
    assert main(["train", str(tmp_path / "b1" / "config.yaml"), "name=b2"]) == 0
    assert "at best" in capsys.readouterr().err
    first, second = (_weights(tmp_path / name) for name in ("b1", "b2"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "final" / "model.pt", weights_only=True)


def test_a_step_and_an_average_are_measured_and_planned_from(capsys):
    words = ["--model", "mlp", "--batch", "8", "--samples", "512", "--measure", "--json"]
    assert main(["plan", "averaging", *words, "--workers", "64"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    plan = json.loads(out.splitlines()[-1])
    measured = plan["measured"]
    assert (measured["workers"], measured["nodes"], measured["backend"]) == (2, 1, "gloo")
    assert measured["step_s"] == plan["step_s"] > 0 < measured["all_reduce_s"]
    (average,) = plan["averages"]
    grown = (1 - 1 / 64) / (1 - 1 / 2)
    assert average["all_reduce_s"] == pytest.approx(grown * measured["all_reduce_s"])
    assert plan["choice"]["tau"] == plan["choice"]["delay"] + 1 >= 2
    assert plan["choice"]["hidden"]
    dasgd = plan["methods"][-1]
    assert dasgd["epoch_s"] == pytest.approx(plan["step_s"] * 512 / (8 * 64))


def test_an_average_of_one_is_not_measured(capsys):
    words = ["--model", "mlp", "--measure", "--measured-workers", "1"]
    assert main(["plan", "averaging", *words]) == 2
    assert "between at least 2 workers, but got 1" in capsys.readouterr().err
