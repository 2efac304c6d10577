"""Runs whose rows somebody hears: each row as it comes, and an end when they say so."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from actors.groups.group import Group
from actors.groups.warm import WarmActors
from raylab.cli.main import main
from raylab.config import family_of, run_config
from raylab.drivers.commands import resume, train
from raylab.drivers.result import Result
from raylab.errors import NonFiniteLossError
from raylab.report import Progress

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

PIPELINE = {
    "method": "adl",
    "model": "mlp",
    "model_options": {"hidden": [8, 8]},
    "data": "random:n=256,shape=1x4x4,classes=3",
    "epochs": 400,
    "cpus_per_stage": 0.1,
    "timeline": 0,
    "evaluate_every": 400,
}
SERVER = {
    "method": "dis_dfsdca",
    "data": "sparse:n=240,d=20,density=0.4",
    "workers": 2,
    "tolerance": 0.0,
    "epochs": 100_000.0,
    "cpus_per_worker": 0.1,
    "sample_s": 1e-3,
}
THREADS = {
    "method": "shared_asysvrg",
    "data": "sparse:n=240,d=20,density=0.4",
    "workers": 2,
    "tolerance": 0.0,
    "epochs": 1_000_000.0,
    "cpus_per_worker": 0.1,
}
AVERAGING = {
    "method": "dasgd",
    "model": "mlp",
    "model_options": {"hidden": [8, 8]},
    "batch_size": 16,
    "data": "random:n=256,shape=1x4x4,classes=3",
    "epochs": 2000,
    "cpus_per_worker": 0.1,
    "evaluate_every": 2000,
}


def run(keys: Mapping[str, Any], folder: Path, name: str, hear: Callable[[Any], bool]) -> Result:
    config = run_config({**keys, "storage": str(folder), "name": name, "checkpoint_minutes": 0.0})
    return train(config, progress=False, on_row=hear)


def processes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that gets the processes of every group that ends."""
    found: list[list[int]] = []
    leave = Group.__exit__

    def left(self: Group, *error: Any) -> None:
        found.append([home.pid for home in self.homes])
        leave(self, *error)

    monkeypatch.setattr(Group, "__exit__", left)
    return found


@pytest.mark.parametrize(
    "keys",
    [PIPELINE, SERVER, THREADS, AVERAGING],
    ids=["stages", "server", "threads", "averaging"],
)
def test_a_signal_leaves_a_checkpoint_of_then_and_the_way_to_go_on(
    tmp_path, monkeypatch, capsys, keys
):
    """The only checkpoint is the one that the signal asks for."""
    show, sent = Progress.show, []

    def shown(self, done, rows):
        show(self, done, rows)
        if rows and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "show", shown)
    keys = {**keys, "storage": str(tmp_path), "name": "ended", "checkpoint_minutes": 1e6}
    keys["report_every"] = 20
    keys = {k: v for k, v in keys.items() if k in family_of(keys).fields}
    (tmp_path / "run.yaml").write_text(json.dumps(keys))
    assert main(["train", str(tmp_path / "run.yaml"), "--quiet"]) == 143
    folder = tmp_path / "ended"
    err = capsys.readouterr().err.splitlines()
    assert err[-1] == f"raylab: ended by SIGTERM: go on with raylab resume {folder}"
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("keys", [PIPELINE, SERVER, THREADS], ids=["stages", "server", "threads"])
def test_a_run_that_is_asked_ends_well_and_its_actors_are_taken_by_the_next(
    keys, tmp_path, monkeypatch
):
    pids = processes(monkeypatch)
    heard: list[Any] = []

    def third(row: Mapping[str, Any]) -> bool:
        heard.append(row)
        return len(heard) == 3

    with WarmActors():
        first = run(keys, tmp_path, "first", third)
        again = run(keys, tmp_path, "again", lambda _: True)
    assert len(heard) == 3
    assert first.summary["stopped"] == again.summary["stopped"] == "asked"
    rows = pq.read_table(tmp_path / "first" / "metrics.parquet").to_pylist()
    assert [row["step"] for row in rows][:3] == [row["step"] for row in heard]
    assert json.loads((tmp_path / "first" / "result.json").read_text()) == first.summary
    assert first.summary["steps"] == rows[-1]["step"]
    saved = torch.load(tmp_path / "first" / "checkpoints" / "final" / "model.pt", weights_only=True)
    assert all(torch.equal(saved[name], tensor) for name, tensor in first.weights.items())
    assert pids[0] == pids[1]


def test_workers_that_are_asked_end_together(tmp_path):
    heard: list[Any] = []

    def second(row: Mapping[str, Any]) -> bool:
        heard.append(row)
        return len(heard) == 2

    found = run(AVERAGING, tmp_path, "run", second)
    assert len(heard) == 2
    assert found.summary["stopped"] == "asked"
    assert 2 <= found.summary["epochs"] == len(found.table) < 2000
    # 8 rounds an epoch, two of 16 batches at a time.
    assert [row["step"] for row in heard] == [8, 16]


def test_a_run_that_was_asked_to_end_can_be_resumed(tmp_path):
    found = run({**PIPELINE, "checkpoint_every": 4}, tmp_path, "run", lambda _: True)
    epochs = found.summary["epochs"]
    assert found.summary["stopped"] == "asked"
    again = resume(str(tmp_path / "run"), [f"epochs={epochs + 1}"], progress=False)
    assert "stopped" not in again.summary
    assert again.summary["epochs"] == epochs + 1
    steps = again.table.column("step").to_pylist()
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    "keys", [PIPELINE, SERVER, AVERAGING], ids=["stages", "server", "replicas"]
)
def test_what_a_listener_raises_ends_the_run_and_is_raised(keys, tmp_path):
    def fail(_: Any) -> bool:
        raise NonFiniteLossError("no such loss")

    with pytest.raises(NonFiniteLossError, match="no such loss"):
        run(keys, tmp_path, "run", fail)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_that_is_asked_at_its_last_row_has_ended_as_ever(tmp_path):
    keys = {**PIPELINE, "epochs": 2}
    found = run(keys, tmp_path, "run", lambda row: row["epoch"] == 2)
    assert "stopped" not in found.summary
    assert found.summary["epochs"] == 2
