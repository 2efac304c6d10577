"""Averaging on Ray Train's workers: the numbers of one process, whatever dies."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from raylab import AveragingTrainer, NonFiniteLossError, RaylabError, ResourceError, Result
from raylab.cli.main import main
from raylab.drivers.averaging.simulated import Replicas
from tests.reference.networks import batches, conv_bn64

pytestmark = pytest.mark.actor

DATA = batches("conv", 10, size=4, ragged=True, seed=1)
TEST = batches("conv", 3, size=4, seed=2)
EPOCHS = 2


class Killing(nn.Module):
    """A block that kills the last worker, each time at another forward of its process."""

    def __init__(self, block: nn.Module, folder: Path, forwards: list[int]) -> None:
        super().__init__()
        self.block, self._folder, self._at, self._done = block, folder, forwards, 0
        folder.mkdir()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if dist.is_initialized() and dist.get_rank() == dist.get_world_size() - 1:
            self._done += 1
            gone = len(list(self._folder.iterdir()))
            if gone < len(self._at) and self._done == self._at[gone]:
                (self._folder / str(gone)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        out: torch.Tensor = self.block(x)
        return out


def trainer(model: nn.Module, storage: Path, name: str, failures: int = 0, **options: Any) -> Any:
    return AveragingTrainer(
        model,
        F.cross_entropy,
        **{
            "workers": 2,
            "tau": 3,
            "delay": 1,
            "optimizer": functools.partial(SGD, lr=0.1, momentum=0.9),
            "checkpoint_every": 3,
            "checkpoint_minutes": 0,
            "resources_per_worker": {"CPU": 0.1},
            "run_config": RunConfig(
                name=name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=failures),
            ),
            **options,
        },
    )


def fit(model: nn.Module, storage: Path, name: str, failures: int = 0, **options: Any) -> Result:
    fitting = {k: options.pop(k) for k in ("resume", "resume_step") if k in options}
    made = trainer(model, storage, name, failures, **options)
    return made.fit(DATA, epochs=EPOCHS, test=TEST, progress=False, **fitting)


def alone(model: nn.Module, **options: Any) -> Replicas:
    """What the same run gives with both replicas in this process."""
    made = trainer(model, Path("unused"), "unused", **options)
    plan = made.course(DATA, TEST, epochs=EPOCHS, evaluate_every=1, report_every=0)
    replicas = Replicas(plan, 2)
    replicas.loop.run()
    return replicas


def assert_identical(found: Result, expected: Replicas) -> None:
    tensors = expected.loop.model.state_dict().values()
    for (name, tensor), other in zip(found.model.state_dict().items(), tensors, strict=True):
        assert torch.equal(tensor, other), name
    for column in ("epoch", "step", "loss", "accuracy", "test_loss", "averages", "bytes"):
        rows = [row[column] for row in expected.loop.rows]
        assert found.table.column(column).to_pylist() == rows, column


def test_two_workers_are_two_replicas_of_one_process_whatever_is_killed(session, tmp_path):
    """Also what is sent in fewer bytes, and a run that goes on after its end."""
    model, options = conv_bn64(3), {"average_dtype": "bfloat16"}
    model[1] = Killing(model[1], tmp_path / "kills", [9, 2])
    expected = alone(model, **options)
    found = fit(model, tmp_path, "killed", failures=2, **options)
    assert len(list((tmp_path / "kills").iterdir())) == 2
    assert_identical(found, expected)
    assert found.summary["kind"] == "averaging"
    run = tmp_path / "killed"
    assert {each.name for each in run.iterdir()} >= {
        *("config.yaml", "metrics.parquet", "result.json", "report.html", "checkpoints"),
    }
    steps = sorted(int(p.name.removeprefix("step-")) for p in run.glob("checkpoints/step-*"))
    assert len(steps) >= 2
    (run / "result.json").unlink()
    resumed = fit(model, tmp_path, "killed", resume=run, resume_step=steps[0], **options)
    assert_identical(resumed, expected)


def test_more_losses_than_allowed_end_the_run_and_fewer_workers_go_on(session, tmp_path):
    model = conv_bn64(3)
    model[1] = Killing(model[1], tmp_path / "kills", [9])
    with pytest.raises(RaylabError, match=r"bears 0 losses of a worker.*raylab resume"):
        fit(model, tmp_path, "lost")
    run = tmp_path / "lost"
    found = fit(model, tmp_path, "lost", resume=run, workers=1)
    assert found.metrics["workers"] == 1
    assert found.table.column("epoch").to_pylist() == [1, 2]


def test_what_a_worker_computes_wrongly_ends_the_run_at_once(session, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"of worker [01]"):
        fit(
            conv_bn64(3),
            tmp_path,
            "diverged",
            failures=3,
            optimizer=functools.partial(SGD, lr=1e200),
        )


def test_a_cluster_without_room_is_told_of_before_a_worker_starts(session, tmp_path):
    with pytest.raises(ResourceError, match=r"room for 2 workers with \{'CPU': 100"):
        fit(conv_bn64(3), tmp_path, "big", resources_per_worker={"CPU": 100.0}, wait_s=0.5)


def test_the_command_measures_what_it_is_to_measure(session, tmp_path, capsys):
    words = ["train", "dasgd", "model=mlp", "data=digits", "batch_size=128", "tau=auto"]
    words += ["delay=auto", "cpus_per_worker=0.1", f"storage={tmp_path}", "name=auto", "--quiet"]
    assert main(words) == 0
    config = (tmp_path / "auto" / "config.yaml").read_text()
    assert "auto" not in config.replace("name: auto", "")
    out = capsys.readouterr().out
    assert "waited for the network" in out
