"""`raylab train` as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml

from raylab.cli.main import main
from raylab.config import PipelineConfig

pytestmark = pytest.mark.actor

SMALL = ("model=mlp", "model_options.hidden=[32,16]", "data=digits", "wait_s=120")


@pytest.fixture(scope="module")
def runs(session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds a run, t1, and its repetition, t2."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["epochs=2", "accumulate=2", "delay=auto", "recipe=adl", "warmup_epochs=0", "lr=0.1"]
    where = [f"storage={folder}", "name=t1"]
    assert main(["train", "adl", *SMALL, *words, "report_every=10", "--quiet", *where]) == 0
    assert main(["train", str(folder / "t1" / "config.yaml"), "name=t2", "--quiet"]) == 0
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "final" / "model.pt", weights_only=True)


def test_a_run_leaves_its_files(runs):
    files = {str(path.relative_to(runs / "t1")) for path in (runs / "t1").rglob("*.*")}
    assert files >= {
        "config.yaml",
        "metrics.parquet",
        "timeline.parquet",
        "result.json",
        "report.html",
        "checkpoints/final/model.pt",
    }


def test_the_timeline_has_every_stage_at_every_kind_of_work(runs):
    spans = pq.read_table(runs / "t1" / "timeline.parquet").to_pylist()
    for stage in (0, 1):
        kinds = [span["kind"] for span in spans if span["stage"] == stage]
        assert {"forward", "backward", "update", "evaluate"} <= set(kinds)
        assert kinds.count("forward") == kinds.count("backward") == 2 * 23
    assert "plot-timeline-t1" in (runs / "t1" / "report.html").read_text(encoding="utf-8")


def test_the_metrics_have_a_row_a_report(runs):
    table = pq.read_table(runs / "t1" / "metrics.parquet")
    assert set(table.column_names) >= {
        "epoch",
        "step",
        "time_s",
        "loss",
        "accuracy",
        "test_accuracy",
        "staleness_mean",
        "samples_per_s",
        "blocked_s",
        "messages",
    }
    rows = table.to_pylist()
    assert [row["epoch"] for row in rows if row["epoch"] is not None] == [1, 2]
    assert len(rows) > 4
    assert rows[-1]["loss"] < rows[0]["loss"]


def configuration(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_the_configuration_is_written_resolved(runs):
    config = configuration(runs / "t1")
    assert set(config) == set(PipelineConfig.model_fields)
    assert (config["recipe"], config["lr"], config["weight_decay"]) == (None, 0.1, 5e-4)
    assert (config["milestones"], config["stages"]) == ([150, 225, 275], [1])
    assert isinstance(config["delay"][0], int)
    assert config["measured"]["message_s"]
    assert (config["storage"], config["name"]) == (str(runs), "t1")


def test_a_run_can_be_repeated_bit_for_bit(runs):
    first, second = weights(runs / "t1"), weights(runs / "t2")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    expected = {**configuration(runs / "t1"), "name": "t2"}
    del expected["measured"]
    assert configuration(runs / "t2") == expected


def test_another_seed_gives_other_weights_and_the_table_shows_the_run(runs, capsys):
    assert main(["train", str(runs / "t1" / "config.yaml"), "seed=1", "name=t3"]) == 0
    out, err = capsys.readouterr()
    assert "test accuracy" in out
    assert out.endswith(f"results: {runs / 't3'}\nreport: {runs / 't3' / 'report.html'}\n")
    assert re.search(r"^epoch +2 ", err, re.MULTILINE)
    first, third = weights(runs / "t1"), weights(runs / "t3")
    assert not any(torch.equal(first[name], third[name]) for name in first)


def test_json_is_the_last_line_and_the_content_of_the_result(runs, capsys):
    words = [*SMALL, "stages=1", f"storage={runs}", "name=json", "--json", "--quiet"]
    assert main(["train", "1f1b", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    printed = json.loads(out.splitlines()[-1], parse_constant=_refuse)
    assert printed == json.loads((runs / "json" / "result.json").read_text())
    assert printed["metrics"]["epoch"] == 1
    assert printed["config"]["method"] == "1f1b"
    assert "test accuracy" not in out


def _refuse(constant: str) -> None:
    raise AssertionError(f"JSON has no {constant}")


def test_a_loss_that_explodes_is_exit_code_1(runs, capsys):
    words = [*SMALL, "lr=1e12", f"storage={runs}", "name=nan", "--quiet"]
    assert main(["train", "adl", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("raylab: error: the loss must be finite")
    assert not (runs / "nan" / "result.json").exists()


def test_a_name_that_is_taken_is_exit_code_2(runs, capsys):
    assert main(["train", str(runs / "t1" / "config.yaml"), "--quiet"]) == 2
    assert "choose another name" in capsys.readouterr().err


def test_resources_that_are_not_there_are_exit_code_2(runs, capsys):
    words = [*SMALL, "cpus_per_stage=1000", "wait_s=0.1", f"storage={runs}", "name=much"]
    assert main(["train", "adl", *words, "--quiet"]) == 2
    assert "did not get their resources within 0.1 s" in capsys.readouterr().err


def test_a_session_that_was_there_stays(runs):
    assert ray.is_initialized()


def test_ctrl_c_ends_a_run_and_the_ray_that_it_started(tmp_path):
    command = [sys.executable, "-m", "raylab", "train", "adl", *SMALL, "epochs=1000000"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [*command, f"storage={tmp_path}"],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stderr is not None
        while not run.stderr.readline().startswith("epoch   1 "):
            assert run.poll() is None
        assert any("raylet" in name for name in _processes(run.pid))
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert out == ""
    assert err.endswith("raylab: interrupted\n")
    assert "Traceback" not in err
    deadline = time.monotonic() + 30
    while left := list(_processes(run.pid)):
        assert time.monotonic() < deadline, left


def _processes(session: int) -> Iterator[str]:
    """Yield the names of the processes of a session, which all that a run starts belong to."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = stat.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        state, _, _, its_session, *_ = after.split()
        if int(its_session) == session and state != "Z":
            yield before.partition("(")[2]
