"""Searches on actors: trials that end early, fail, diverge; a driver that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from optuna.trial import TrialState

from raylab.cli.main import main
from raylab.drivers.tuning.study import TuningStudy
from tests.helpers import wait_until_gone

pytestmark = pytest.mark.actor

SMALL = {
    "method": "bp",
    "model": "mlp",
    "model_options": {"hidden": [16]},
    "stages": 1,
    "cpus_per_stage": 0.1,
    "timeline": 0,
    "checkpoint_minutes": 0.0,
    "epochs": 4,
}
POINTS = [
    {"lr": 0.05, "data": "digits"},
    {"lr": 0.1, "data": "digits"},
    {"lr": 1e-6, "data": "digits"},
    {"lr": 1e30, "data": "digits"},
    {"lr": 0.05, "data": "npz:/nowhere.npz"},
]


@pytest.fixture(scope="module")
def searched(
    session: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a search over five points, and what its result.json says."""
    folder = tmp_path_factory.mktemp("tuning")
    keys = {
        "train": SMALL,
        "space": {
            "lr": {"uniform": [1e-6, 1e30], "log": True},
            "data": {"choice": ["digits", "npz:/nowhere.npz"]},
        },
        "objectives": [{"metric": "test_loss"}],
        "search": {"algorithm": "random", "start_from": POINTS},
        "scheduler": {"name": "asha", "grace": 1, "reduction": 2},
        "budget": {"trials": 5},
        "concurrent": 1,
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(keys))
    words = [str(folder / "mine.yaml"), f"storage={folder}", "name=s", "--quiet", "--json"]
    assert main(["tune", *words]) == 0
    return folder / "s", json.loads((folder / "s" / "result.json").read_text())


def test_every_trial_has_ended_as_it_should(searched):
    folder, _ = searched
    study = TuningStudy.open(folder)
    ends = [(trial.state, trial.user_attrs["ended"]) for trial in study.trials()]
    assert ends[0] == (TrialState.COMPLETE, "finished")
    assert ends[2] == (TrialState.PRUNED, "scheduler")
    assert ends[3] == (TrialState.PRUNED, "diverged")
    assert ends[4] == (TrialState.FAIL, "failed")


def test_a_trial_that_fails_is_tried_again_and_says_why(searched):
    notes = TuningStudy.open(searched[0]).trial(4).user_attrs
    assert notes["failures"] == 1
    assert "there is none at /nowhere.npz" in notes["error"]


def test_a_trial_that_is_ended_early_ends_at_its_report(searched):
    folder, _ = searched
    trial = TuningStudy.open(folder).trial(2)
    assert list(trial.intermediate_values) == [1]
    assert (folder / "trials/2/result.json").is_file()


def test_a_trial_is_a_run_with_its_files_and_reports_its_rows(searched):
    folder, _ = searched
    trial = TuningStudy.open(folder).trial(0)
    rows = pq.read_table(folder / trial.user_attrs["folder"] / "metrics.parquet").to_pylist()
    losses = [row["test_loss"] for row in rows if row["test_loss"] is not None]
    assert list(trial.intermediate_values.values()) == pytest.approx(losses)
    assert trial.value == losses[-1]
    assert trial.user_attrs["train_s"] > 0
    assert trial.user_attrs["start_s"] > 0


def test_one_process_serves_trial_after_trial(searched):
    folder, _ = searched
    reports = [folder / "ray" / f"trial-{k}" / "result.json" for k in (0, 1, 2)]
    pids = {json.loads(report.read_text().splitlines()[0])["pid"] for report in reports}
    assert len(pids) == 1


def test_the_summary_names_the_best_and_the_share_of_starting(searched):
    _, summary = searched
    assert summary["trials"]["failed"] == 1
    assert summary["best"]["number"] in (0, 1)
    assert summary["metrics"] == summary["best"]["values"]
    assert 0 < summary["start_share"] < 1


def test_the_best_is_what_raylab_train_takes(searched, capsys):
    folder, summary = searched
    where = [f"storage={folder}", "name=again", "epochs=1"]
    assert main(["train", str(folder / "best.yaml"), *where, "--quiet", "--json"]) == 0
    run = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert run["config"]["lr"] == summary["best"]["params"]["lr"]


def test_a_trial_that_has_reached_all_that_is_looked_for_trains_no_further(session, tmp_path):
    keys = {
        "train": {**SMALL, "epochs": 1000, "lr": 0.05},
        "space": {"momentum": {"uniform": [0.5, 0.9]}},
        "objectives": [{"metric": "time_s", "until": {"test_accuracy": 0.3}}],
        "search": {"algorithm": "random"},
        "budget": {"trials": 2},
        "concurrent": 1,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(keys))
    words = [str(tmp_path / "mine.yaml"), f"storage={tmp_path}", "name=s", "--quiet"]
    assert main(["tune", *words]) == 0
    for trial in TuningStudy.open(tmp_path / "s").trials():
        assert (trial.state, trial.user_attrs["ended"]) == (TrialState.COMPLETE, "finished")
        path = tmp_path / "s" / trial.user_attrs["folder"] / "metrics.parquet"
        rows = [row for row in pq.read_table(path).to_pylist() if row["test_accuracy"] is not None]
        assert trial.value == next(row["time_s"] for row in rows if row["test_accuracy"] >= 0.3)
        assert len(rows) < 1000


def driver(words: Sequence[str], dies: str) -> None:
    """Search in a process of its own, which is killed before what it would do at a moment."""
    script = f"""
import os, signal, sys
import ray
from raylab.cli.main import main
from raylab.drivers.tuning.searcher import StudySearch
from raylab.drivers.tuning.study import TuningStudy
ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
def die(): os.kill(os.getpid(), signal.SIGKILL)
report, end = TuningStudy.report, TuningStudy.end
def reporting(self, number, count, value):
    if {dies!r} == f"report {{number}} {{count}}": die()
    report(self, number, count, value)
def ending(self, number, *arguments, **named):
    if {dies!r} == f"end {{number}}": die()
    end(self, number, *arguments, **named)
TuningStudy.report, TuningStudy.end = reporting, ending
sys.exit(main({list(words)!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_search_that_the_cluster_has_no_room_for_says_so_and_ends(session, tmp_path, capsys):
    keys = {
        "train": {**SMALL, "cpus_per_stage": 1000.0, "wait_s": 6.0},
        "space": {"lr": {"uniform": [0.01, 0.1]}},
        "objectives": [{"metric": "test_loss"}],
        "budget": {"trials": 3},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(keys))
    assert main(["tune", str(tmp_path / "mine.yaml"), f"storage={tmp_path}", "name=s"]) == 2
    said = capsys.readouterr().err
    assert "waiting up to 6 s for the resources of trial 0 (CPU: 1000 needed" in said
    assert "trial 0: 1 actor did not get their resources within 6 s (CPU: 1000 needed" in said
    assert f"raylab tune --resume {tmp_path}/s" in said
    states = [trial.state for trial in TuningStudy.open(tmp_path / "s").trials()]
    assert set(states) == {TrialState.RUNNING}  # they begin where there is room


def wait_for_its_trials(folder: Path) -> None:
    for report in (folder / "ray").glob("*/result.json"):
        for line in report.read_text().splitlines():
            wait_until_gone(json.loads(line)["pid"])


def test_a_driver_that_is_killed_loses_nothing(session, cold, tmp_path):
    keys = {
        "train": {**SMALL, "checkpoint_every": 5, "epochs": 3},
        "space": {"lr": {"uniform": [0.01, 0.1]}},
        "objectives": [{"metric": "test_loss"}],
        "scheduler": {"name": "median", "others": 9},
        "budget": {"trials": 3},
        "concurrent": 1,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(keys))
    folder, resume = tmp_path / "s", ["tune", "--resume", str(tmp_path / "s"), "--quiet"]
    driver(["tune", str(tmp_path / "mine.yaml"), f"storage={tmp_path}", "name=s"], "report 1 3")
    wait_for_its_trials(folder)
    study = TuningStudy.open(folder)
    first, cut = study.trials()
    assert (first.state, cut.state) == (TrialState.COMPLETE, TrialState.RUNNING)
    assert list(cut.intermediate_values) == [1, 2]
    driver(resume, "end 2")
    wait_for_its_trials(folder)
    assert main(resume) == 0
    trials = TuningStudy.open(folder).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert (trials[0].value, trials[0].params) == (first.value, first.params)
    assert trials[1].params == cut.params
    for trial in trials:
        assert list(trial.intermediate_values) == [1, 2, 3]
        rows = pq.read_table(folder / trial.user_attrs["folder"] / "metrics.parquet").to_pylist()
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        assert trial.value == rows[-1]["test_loss"]
    assert len(list((folder / "trials").iterdir())) == 3
