"""The parameter server on real actors: certified ends, whoever dies, comes or goes meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from ray.train import CheckpointConfig, FailureConfig, RunConfig
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from actors.groups.group import Group
from actors.server.ends import Ends
from actors.server.server_group import ServerGroup
from raylab import ConfigError, ParameterServerTrainer, Result
from raylab.cli.main import main
from raylab.config import ParameterServerConfig
from raylab.data import open_rows
from raylab.drivers.server import elastic
from raylab.drivers.server import run as server_run
from raylab.drivers.server.workload import Workload
from tests.real_rows import real_rows

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

DATA = "sparse:n=240,d=20,density=0.4"
STRENGTH = 0.1
SLOW_S = 1e-3
"""Modelled time of a sample: a run takes seconds, in which things can happen."""


def trainer(
    path: Path, name: str, *, problem: str = "ridge", failures: int = 0, **options: Any
) -> ParameterServerTrainer:
    return ParameterServerTrainer(
        problem,
        strength=STRENGTH,
        run_config=RunConfig(
            name=name,
            storage_path=str(path),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=failures),
        ),
        **{
            "workers": 2,
            "resources_per_worker": {"CPU": 0.1},
            "checkpoint_every": 5,
            "checkpoint_minutes": 0,
            **options,
        },
    )


def closed_form() -> np.ndarray:
    block = open_rows(DATA).block(0, 240)
    x = np.zeros((block.rows, block.dim))
    for i in range(block.rows):
        at = slice(block.indptr[i], block.indptr[i + 1])
        x[i, block.indices[at]] = block.values[at]
    hessian = x.T @ x / block.rows + STRENGTH * np.eye(block.dim)
    return np.linalg.solve(hessian, x.T @ block.labels / block.rows)


def assert_solved(result: Result) -> None:
    """The run ended by its tolerance, at the solution, and (3.3) has held all along."""
    assert result.summary["ended_by"] == "tolerance"
    assert result.metrics["duality_gap"] <= 1e-8
    rows = result.table.to_pylist()
    assert all(row.get("relation") is None or row["relation"] < 1e-12 for row in rows)
    expected = closed_form()
    error = np.linalg.norm(result.weights["w"].numpy() - expected) / np.linalg.norm(expected)
    # P(w) - P(w*) >= strength/2 |w - w*|^2, and the gap is no less.
    assert error <= np.sqrt(2e-8 / STRENGTH) / np.linalg.norm(expected)


def test_a_run_of_the_command_on_real_rows_ends_at_the_closed_form(tmp_path, capsys):
    real = real_rows("breast_cancer", tmp_path)
    words = [f"data={real.spec}", "workers=2", "cpus_per_worker=0.1", f"storage={tmp_path}"]
    words += ["straggler=paper", "tolerance=2e-14", "name=run"]
    assert main(["train", "dis_dfsdca", *words, "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["kind"], summary["ended_by"]) == ("parameter_server", "tolerance")
    assert summary["metrics"]["duality_gap"] <= 1e-8
    assert re.search(r"^epoch +\d+\.\d  step +\d+  gap \d\.\d\de-0\d  \d+ samples/s", err, re.M)
    run = tmp_path / "run"
    rows = pq.read_table(run / "metrics.parquet").to_pylist()
    assert rows[0]["step"] < rows[-1]["step"]
    assert [row["workers"] for row in rows] == [2] * len(rows)
    assert all(row["bytes"] > 0 and row["relation"] < 1e-12 for row in rows)
    assert sum(row["samples_per_s"] for row in rows) > 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert set(config) == set(ParameterServerConfig.model_fields)
    assert max(row["staleness_max"] for row in rows) <= config["resolved"]["delta"]
    weights = torch.load(run / "checkpoints" / "final" / "model.pt", weights_only=True)["w"]
    best = real.ridge(STRENGTH)
    assert np.linalg.norm(weights.numpy() - best) <= 1e-6 * np.linalg.norm(best)
    assert "Dis-dfSDCA" in (run / "report.html").read_text(encoding="utf-8")
    # Finished is finished, unless another end is asked for.
    assert main(["resume", str(run), "workers=1"]) == 2
    assert "must not be finished" in capsys.readouterr().err


def test_a_worker_that_dies_in_the_middle_of_a_message_is_replaced(tmp_path, capsys):
    dying = {"straggler": "dies:worker=1,message=6", "sample_s": SLOW_S, "wire": "ray"}
    found = trainer(tmp_path, "run", failures=1, **dying).fit(DATA)
    assert_solved(found)
    told = capsys.readouterr().err
    assert "worker 1 begins again with" in told
    assert "(restart 1 of 1)" in told


def test_a_process_that_does_not_live_to_take_the_place_of_a_lost_one_is_no_other_loss(
    tmp_path, monkeypatch
):
    started: list[int] = []
    restart = Group.restart

    def stillborn(self: Group, index: int) -> Any:
        """Start it as where its node is gone, too, and Ray does not know yet."""
        home = restart(self, index)
        started.append(index)
        if len(started) < 3:
            ray.kill(self.handle(index))
        return home

    monkeypatch.setattr(Group, "restart", stillborn)
    dying = {"straggler": "dies:worker=1,message=6", "sample_s": SLOW_S}
    assert_solved(trainer(tmp_path, "run", failures=1, **dying).fit(DATA))
    assert started == [2, 2, 2]


def test_a_server_that_is_killed_goes_on_from_the_last_checkpoint(
    tmp_path, when_saved, monkeypatch, capsys
):
    servers: list[int] = []
    run = ServerGroup.run

    def watched(self: ServerGroup, *arguments: Any) -> str:
        servers.append(self.homes[0].pid)
        return run(self, *arguments)

    monkeypatch.setattr(ServerGroup, "run", watched)
    when_saved(lambda: os.kill(servers[0], signal.SIGKILL))
    given = {"method": "asysvrg", "workers": 1, "sample_s": SLOW_S}
    found = trainer(tmp_path, "run", failures=1, **given).fit(DATA)
    assert_solved(found)
    assert len(servers) == 2
    assert "going on from the checkpoint of step" in capsys.readouterr().err


def test_workers_are_added_while_a_run_goes_on_and_one_that_dies_at_once_loses_nothing(
    tmp_path, when_saved, capsys
):
    # The first message of the one that is added is its last: it has kept nothing by itself.
    dying = {"straggler": "dies:worker=1,message=0", "failures": 1}
    resized = trainer(tmp_path, "run", workers=1, sample_s=SLOW_S, **dying)
    when_saved(lambda: resized.resize(2))
    found = resized.fit(DATA)
    assert "worker 1 begins again with what it kept at step" in capsys.readouterr().err
    assert_solved(found)
    rows = found.table.to_pylist()
    assert sorted({row["workers"] for row in rows}) == [1, 2]
    before = [row for row in rows if row["workers"] == 1][-1]
    after = next(row for row in rows if row["workers"] == 2)
    # A checkpoint was there before, so there were steps; of them a row may not have come yet.
    assert after["step"] > 0
    assert after["step"] >= before["step"]
    assert all(row["duality_gap"] <= before["duality_gap"] for row in rows if row["workers"] == 2)


def test_a_range_of_workers_shrinks_for_others_who_wait_and_grows_again(
    tmp_path, when_saved, monkeypatch
):
    """Three rounds: two workers, one while another has the place, two until the solution."""
    monkeypatch.setattr(elastic, "_LOOK_S", 0.3)
    others: list[PlacementGroup] = []
    rounds: list[int] = []
    ends, run = server_run.ends, ServerGroup.run

    def endless_at_first(*arguments: Any) -> Ends:
        found = ends(*arguments)
        return replace(found, tolerance=found.tolerance if len(rounds) == 2 else 0.0)

    def watched(self: ServerGroup, *arguments: Any) -> str:
        rounds.append(len(self.workers))
        if len(rounds) == 2:
            assert others[0].wait(60)
            remove_placement_group(others[0])
        return run(self, *arguments)

    monkeypatch.setattr(server_run, "ends", endless_at_first)
    monkeypatch.setattr(ServerGroup, "run", watched)
    when_saved(lambda: others.append(placement_group([{"CPU": 0.6}])))
    needs = {"resources_per_worker": {"CPU": 0.6}, "workers": (1, 2)}
    found = trainer(tmp_path, "run", **needs, sample_s=SLOW_S).fit(
        DATA, epochs=100_000, progress=False
    )
    assert rounds == [2, 1, 2]
    assert_solved(found)
    assert [key for key, _ in groupby(row["workers"] for row in found.table.to_pylist())] == rounds


@pytest.mark.usefixtures("cold")
def test_an_interrupted_run_leaves_nothing_behind(tmp_path, when_saved):
    def interrupt() -> None:
        raise KeyboardInterrupt

    when_saved(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, "run", workers=1, sample_s=SLOW_S).fit(DATA, progress=False)
    groups = placement_group_table().values()
    assert {group["state"] for group in groups} <= {"REMOVED"}
    assert not (tmp_path / "run" / "result.json").exists()


def killed_once_saved(words: Sequence[str]) -> None:
    """Run the command in a process of its own, which is killed at its first checkpoint."""
    script = f"""
import os, signal, sys
import ray
from raylab.cli.main import main
from raylab.drivers.commits import Commits
ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
took = Commits.took
def killing(self, *arguments):
    took(self, *arguments)
    if self.committed > 0:
        os.kill(os.getpid(), signal.SIGKILL)
Commits.took = killing
sys.exit(main({list(words)!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(("method", "workers"), [("cocoa_plus", 2), ("sdca", 1)])
def test_a_synchronous_method_comes_to_the_same_bits_whatever_was_lost(
    tmp_path, when_saved, monkeypatch, capsys, method, workers
):
    def fitted(name: str, **more: Any) -> Result:
        options = {"method": method, "workers": workers, "local_steps": 40}
        options |= {"checkpoint_every": 3, "failures": 2}
        found = trainer(tmp_path, name, **options, **more).fit(DATA, tolerance=1e-9)
        assert found.summary["ended_by"] == "tolerance"
        return found

    undisturbed = fitted("undisturbed")
    last = undisturbed.table.to_pylist()[-1]
    dying = f"dies:worker={workers - 1},message={int(last['step'] * 0.6)}"
    servers: list[int] = []
    run = ServerGroup.run

    def watched(self: ServerGroup, *arguments: Any) -> str:
        servers.append(self.homes[0].pid)
        return run(self, *arguments)

    with monkeypatch.context() as looking:
        looking.setattr(ServerGroup, "run", watched)
        when_saved(lambda: os.kill(servers[-1], signal.SIGKILL))
        disturbed = fitted("disturbed", straggler=dying, sample_s=SLOW_S)
    assert len(servers) == 3
    assert "going on from the checkpoint of step" in capsys.readouterr().err
    assert disturbed.weights["w"].numpy().tobytes() == undisturbed.weights["w"].numpy().tobytes()
    end = disturbed.table.to_pylist()[-1]
    for name in ("step", "samples_seen", "primal", "dual"):
        assert end[name] == last[name]


@pytest.mark.parametrize("method", ["dis_dfsdca", "shared_asysvrg"])
def test_a_ridge_run_begun_on_signs_goes_on_on_signs_and_says_so(
    tmp_path, monkeypatch, capsys, method
):
    draws = np.random.default_rng(0)
    x = draws.standard_normal((60, 4))
    y = np.where(x[:, 0] > 0, 100.0, 0.0)
    np.savez(tmp_path / "rows.npz", x_train=x, y_train=y)
    data = f"npz:{tmp_path / 'rows.npz'}"
    options = {"method": method, "checkpoint_every": 1}

    def begun(work: Workload, about: Any) -> Workload:
        """Be the version that had signs for every problem."""
        return replace(work, make=partial(work.make, signs=True), signs=True)

    with monkeypatch.context() as earlier:
        earlier.setattr(Workload, "since", begun)
        trainer(tmp_path, "run", **options).fit(data, epochs=6, tolerance=0.0, progress=False)
    (tmp_path / "run" / "result.json").unlink()
    found = trainer(tmp_path, "run", **options).fit(
        data, epochs=300, tolerance=1e-12, resume=tmp_path / "run"
    )
    assert "in the place of the labels 0 and 100" in capsys.readouterr().err
    signs = np.where(y > 0, 1.0, -1.0)
    expected = np.linalg.solve(x.T @ x / 60 + STRENGTH * np.eye(4), x.T @ signs / 60)
    np.testing.assert_allclose(found.weights["w"].numpy(), expected, atol=1e-5)


def test_a_driver_that_is_killed_is_resumed_with_other_workers(tmp_path):
    run = tmp_path / "run"
    words = [f"storage={tmp_path}", "name=run", f"data={DATA}", "cpus_per_worker=0.1"]
    words += ["checkpoint_every=5", "checkpoint_minutes=0", f"sample_s={SLOW_S}", "workers=1"]
    killed_once_saved(["train", "dis_dfsdca", *words])
    assert not (run / "result.json").exists()
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        trainer(tmp_path, "run", seed=1).fit(DATA, progress=False, resume=run)
    found = trainer(tmp_path, "run").fit(DATA, progress=False, resume=run)
    assert_solved(found)
    assert found.table.to_pylist()[0]["step"] == 0
    assert found.metrics["workers"] == 2
