"""Threads that share memory and policies that play: runs of the same trainer and command."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from actors.server.solver_group import SolverGroup
from raylab import ConfigError, ParameterServerTrainer
from raylab.cli.main import main
from raylab.drivers.commits import Commits
from tests.actor.test_parameter_server import DATA, closed_form, killed_once_saved, trainer

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

WORDS = (f"data={DATA}", "cpus_per_worker=0.1")
COLUMNS = {
    *("epoch", "step", "time_s", "messages", "bytes", "samples_seen", "samples_per_s", "primal"),
    *("dual", "duality_gap", "gradient_norm", "staleness_mean", "staleness_max", "refused", "eta"),
    *("staleness_counts", "blocked_s", "loss", "accuracy", "workers"),
}
"""Of every method's rows."""


def test_two_threads_end_at_the_certified_solution_with_the_rows_of_every_method(tmp_path, capsys):
    where = [f"storage={tmp_path}", "--json", "--quiet"]
    assert main(["train", "shared_asysvrg", *WORDS, *where, "workers=2", "name=threads"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["ended_by"], summary["figure"]) == ("tolerance", "duality_gap")
    last = summary["metrics"]
    assert last["duality_gap"] <= 1e-8
    assert last["workers"] == 2
    assert summary["config"]["resolved"]["coordinates"] == 20
    assert set(last) >= COLUMNS


def test_threads_whose_process_is_killed_go_on_from_the_last_checkpoint(
    tmp_path, monkeypatch, capsys
):
    pids: list[int] = []
    run, took = SolverGroup.run, Commits.took

    def watched(self: SolverGroup, *arguments: Any) -> str:
        pids.append(self.homes[0].pid)
        return run(self, *arguments)

    def killing(self: Commits, *arguments: Any) -> None:
        took(self, *arguments)
        if self.committed > 0 and len(pids) == 1:
            os.kill(pids[0], signal.SIGKILL)

    monkeypatch.setattr(SolverGroup, "run", watched)
    monkeypatch.setattr(Commits, "took", killing)
    threads = trainer(
        tmp_path, "run", failures=1, method="shared_asysvrg",
        checkpoint_every=0, checkpoint_minutes=1e-3,
    )  # fmt: skip
    found = threads.fit(DATA, epochs=15_000, tolerance=0, certify_every=300)
    assert len(pids) == 2
    assert "going on from the checkpoint of step" in capsys.readouterr().err
    assert found.summary["ended_by"] == "epochs"
    steps = [row["step"] for row in found.table.to_pylist()]
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert np.linalg.norm(found.weights["w"].numpy() - closed_form()) < 1e-5
    with pytest.raises(ConfigError, match="batch was 32 and is 16"):
        trainer(tmp_path, "run", method="shared_asysvrg", batch=16).fit(
            DATA, resume=tmp_path / "run"
        )


def test_threads_whose_driver_is_killed_are_resumed_by_the_command(tmp_path, capsys):
    run, endless = tmp_path / "run", "tolerance=0"
    words = [*WORDS, f"storage={tmp_path}", "name=run", "workers=2", "checkpoint_minutes=1e-3"]
    killed_once_saved(["train", "shared_asysvrg", *words, "epochs=1000000", endless])
    assert not (run / "result.json").exists()
    rows = pq.read_table(run / "metrics.parquet").to_pylist()
    assert main(["resume", str(run), "tolerance=1e-12", "--json", "--quiet"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["ended_by"] == "tolerance"
    again = pq.read_table(run / "metrics.parquet").to_pylist()
    # The certificate of the checkpoint is made again, and says the same.
    *before, last = rows
    assert again[: len(before)] == before
    made = again[len(before)]
    assert {name for name in last if made[name] != last[name]} <= {"time_s", "samples_per_s"}
    steps = [row["step"] for row in again]
    assert steps == sorted(set(steps))
    weights = torch.load(run / "checkpoints" / "final" / "model.pt", weights_only=True)["w"]
    assert np.linalg.norm(weights.numpy() - closed_form()) < 1e-5


def test_workers_learn_to_balance_the_pole_though_one_of_them_dies(tmp_path, capsys):
    def playing(**options: Any) -> ParameterServerTrainer:
        return trainer(
            tmp_path, "run", failures=1, problem="cartpole", method="asysgd",
            options={"target": 100.0, "evaluation": 20}, **options,
        )  # fmt: skip

    found = playing(straggler="dies:worker=1,message=12").fit(epochs=4, certify_every=0.3)
    told = capsys.readouterr().err
    assert "worker 1 begins again with" in told
    assert " greedy " in told
    assert found.summary["ended_by"] == "tolerance"
    first, *_, last = found.table.to_pylist()
    assert first["greedy_return"] < 50
    assert last["greedy_return"] >= 100
    assert last["samples_seen"] <= 40_000
    assert last["epoch"] == last["samples_seen"] / 10_000
    # What a worker keeps is its own, so that others can go on.
    more = {"messages": last["messages"] + 20, "tolerance": 0, "progress": False}
    again = playing(workers=1).fit(resume=tmp_path / "run", **more)
    assert again.summary["ended_by"] == "messages"
    assert again.metrics["workers"] == 1
    assert again.metrics["step"] == last["step"] + 20
