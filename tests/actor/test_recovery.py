"""Whatever is killed, and whenever: the run ends as if it had not been, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig
from torch import nn

from raylab import CheckpointError, ConfigError, PipelineTrainer, RaylabError, Result
from tests.helpers import InProcess, run_pipeline
from tests.mines import MinedBlock
from tests.reference.networks import batches, mlp64
from tests.reference.pipeline import Optimiser

pytestmark = pytest.mark.actor

STAGES = 2
EPOCHS = 3
BATCHES = batches("mlp", 12, ragged=True, seed=5)
TEST = batches("mlp", 2, seed=6)


def mined(folder: Path, draw: random.Random, kills: int) -> tuple[nn.Sequential, list[Any]]:
    """Return a network with a mined block on every stage, and the mines."""
    model = mlp64(3, blocks=4)
    laid: dict[int, list[Any]] = {stage: [] for stage in range(STAGES)}
    for _ in range(kills):
        mine = (draw.randint(1, 20), draw.choice(["forward", "backward"]))
        laid[draw.randrange(STAGES)].append(mine)
    for stage, mines in laid.items():
        model[2 * stage] = MinedBlock(model[2 * stage], folder / str(stage), mines)
    return model, [mine for mines in laid.values() for mine in mines]


def fit(
    model: nn.Sequential, storage: Path, name: str, *, failures: int = 0, **options: Any
) -> Result:
    fitting = {k: options.pop(k) for k in ("resume", "resume_step") if k in options}
    trainer = PipelineTrainer(
        model,
        nn.CrossEntropyLoss(),
        **{
            "method": "adl",
            "stages": [2],
            "accumulate": 2,
            "checkpoint_every": 4,
            "checkpoint_minutes": 0,
            "resources_per_stage": {"CPU": 0.1},
            "run_config": RunConfig(
                name=name,
                storage_path=str(storage),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                failure_config=FailureConfig(max_failures=failures),
            ),
            **options,
        },
    )
    return trainer.fit(BATCHES, epochs=EPOCHS, test=TEST, progress=False, **fitting)


def undisturbed(method: str = "adl", stages: Sequence[int] = (2,)) -> InProcess:
    """What the same run gives without actors, wires and losses."""
    return run_pipeline(
        mlp64(3, blocks=4),
        method=method,
        cuts=stages,
        epochs=[BATCHES] * EPOCHS,
        test=TEST,
        accumulate=2,
        optimiser=Optimiser(kind="sgd", lr=0.05, momentum=0.9),
    )


def assert_identical(found: Result, expected: InProcess) -> None:
    # A mined block has its block's weights under a longer name.
    tensors = expected.model.state_dict().values()
    for (name, tensor), other in zip(found.model.state_dict().items(), tensors, strict=True):
        assert torch.equal(tensor, other), name
    last = expected.runners[-1].loop.program.stage
    rows = [row for row in expected.rows if row["stage"] == last]
    for column in ("step", "loss", "accuracy", "test_loss", "updates"):
        assert found.table.column(column).to_pylist() == [row[column] for row in rows]


def steps_of(run: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(("method", "kills"), [("adl", 6), ("fr", 3)])
def test_stages_killed_at_random_moments_are_replaced(session, tmp_path, method, kills):
    draw = random.Random(method)
    model, mines = mined(tmp_path / "mines", draw, kills=kills)
    found = fit(model, tmp_path, "killed", method=method, failures=len(mines))
    gone = list((tmp_path / "mines").glob("*/*"))
    assert gone, "no mine has gone off"
    assert_identical(found, undisturbed(method))


class Cutting(nn.Module):
    """A block that cuts a link of its own stage, as a pulled cable would, after some forwards."""

    def __init__(self, block: nn.Module, folder: Path, link: str, cuts: list[int]) -> None:
        super().__init__()
        self.block, self._folder, self._link, self._cuts = block, folder, link, cuts
        self._driver, self._forwards = os.getpid(), 0
        folder.mkdir()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        done = len(list(self._folder.iterdir()))
        if os.getpid() != self._driver:
            self._forwards += 1
            if done < len(self._cuts) and self._forwards >= self._cuts[done]:
                (self._folder / str(done)).touch(exist_ok=False)
                ray.get_runtime_context().current_actor.cut.remote(self._link)
        out: torch.Tensor = self.block(x)
        return out


@pytest.mark.parametrize(
    ("block", "link"), [(2, "features 0->1"), (0, "gradients 1->0"), (2, "labels 0->1")]
)
def test_links_cut_at_random_moments_are_wired_anew(session, tmp_path, block, link):
    draw = random.Random(link)
    model = mlp64(3, blocks=4)
    cuts = [draw.randint(2, 16) for _ in range(3)]
    model[block] = Cutting(model[block], tmp_path / "cuts", link, cuts)
    found = fit(model, tmp_path, "cut", failures=len(cuts))
    assert len(list((tmp_path / "cuts").iterdir())) == len(cuts)
    assert_identical(found, undisturbed())


def test_more_losses_than_allowed_end_the_run_and_it_can_still_be_resumed(session, tmp_path):
    model = mlp64(3, blocks=4)
    mines = [(6, "forward"), (6, "backward")]
    model[2] = MinedBlock(model[2], tmp_path / "mines", mines)
    model[0] = MinedBlock(model[0], tmp_path / "none of these", [])
    with pytest.raises(RaylabError, match=r"bears 1 losses .* raylab resume, from the "):
        fit(model, tmp_path, "killed", failures=1)
    assert_identical(fit(model, tmp_path, "killed", resume=tmp_path / "killed"), undisturbed())


def test_a_run_resumes_with_another_number_of_stages_from_the_whole_model(session, tmp_path):
    model = mlp64(3, blocks=4)
    alone = fit(model, tmp_path, "run", stages=1)
    run = tmp_path / "run"
    (run / "result.json").unlink()
    # One stage has nothing in flight: it goes on exactly where it was.
    assert_identical(fit(model, tmp_path, "run", stages=1, resume=run), undisturbed(stages=()))
    (run / "result.json").unlink()
    whole = fit(model, tmp_path, "run", stages=[1, 3], resume=run)
    assert whole.table.column("step").to_pylist() == alone.table.column("step").to_pylist()
    assert whole.metrics["updates"] == alone.metrics["updates"]
    pairs = zip(whole.model.parameters(), alone.model.parameters(), strict=True)
    assert any(not torch.equal(here, there) for here, there in pairs)


def test_damaged_and_foreign_checkpoints_are_named_and_an_older_one_serves(session, tmp_path):
    model = mlp64(3, blocks=4)
    fit(model, tmp_path, "run")
    run = tmp_path / "run"
    older, newer = steps_of(run)
    part = run / "checkpoints" / f"step-{newer:08d}" / "stage-1.pt"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"stage-1\.pt.*bytes.*step {older}"):
        fit(model, tmp_path, "run", resume=run)
    with pytest.raises(ConfigError, match="accumulate was 2 and is 3"):
        fit(model, tmp_path, "run", resume=run, resume_step=older, accumulate=3)
    assert_identical(fit(model, tmp_path, "run", resume=run, resume_step=older), undisturbed())


def train_in_another_process(script: Path, run: Path) -> int:
    done = subprocess.run(
        [sys.executable, str(script), str(run)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_a_driver_killed_at_random_moments_is_resumed(tmp_path):
    """The mine is on a stage; its victim is the driver, whose end takes all actors with it."""
    draw = random.Random(11)
    mines = [(draw.randint(5, 14), draw.choice(["forward", "backward"])) for _ in range(4)]
    script = tmp_path / "train.py"
    script.write_text(
        f"""
import os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
import ray
from tests.actor.test_recovery import fit
from tests.mines import MinedBlock
from tests.reference.networks import mlp64
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
run = Path(sys.argv[1])
model = mlp64(3, blocks=4)
model[2] = MinedBlock(model[2], run.parent / "mines", {mines!r}, victim=os.getpid())
fit(model, run.parent, run.name, **({{"resume": run}} if run.exists() else {{}}))
"""
    )
    run = tmp_path / "run"
    ends = [train_in_another_process(script, run)]
    while ends[-1] != 0:
        assert not (run / "result.json").exists()
        ends.append(train_in_another_process(script, run))
    assert len(ends) == 1 + len(mines)
    found = torch.load(run / "checkpoints" / "final" / "model.pt", weights_only=True)
    expected = undisturbed().model.state_dict()
    for tensor, (name, other) in zip(found.values(), expected.items(), strict=True):
        assert torch.equal(tensor, other), name
