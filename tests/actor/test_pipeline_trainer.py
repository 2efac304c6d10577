"""The trainer on real actors: the numbers of the reference, bit by bit, on either wire."""

from __future__ import annotations

import copy
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from ray.train import RunConfig
from torch import nn
from torch.nn import functional as F

from actors.errors import BatchError, MailboxError, MechanismError, PlacementError, StageError
from raylab import (
    ConfigError,
    DataError,
    ModelError,
    NonFiniteLossError,
    PipelineTrainer,
    RaylabError,
    ResourceError,
    Result,
    Schedule,
)
from raylab.records import RowMerger
from tests.helpers import even_cuts, run_pipeline, torch_optimiser, wait_until_gone
from tests.reference import pipeline as reference
from tests.reference.networks import batches, conv_bn64, mlp64
from tests.reference.pipeline import Optimiser

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

SGD = Optimiser(kind="sgd", lr=0.05, momentum=0.9, weight_decay=1e-2)
ADAM = Optimiser(kind="adam", lr=0.01, weight_decay=1e-2)


def fit(
    model, data, path, *, epochs=2, optimiser=SGD, test=None, report_every=0, **options
) -> Result:
    options.setdefault("resources_per_stage", {"CPU": 0.1})
    trainer = PipelineTrainer(
        model,
        F.cross_entropy,
        optimizer=torch_optimiser(optimiser),
        run_config=RunConfig(storage_path=str(path)),
        **options,
    )
    return trainer.fit(data, epochs=epochs, test=test, report_every=report_every, progress=False)


@pytest.mark.parametrize(
    ("method", "stages", "accumulate", "network", "optimiser", "wire"),
    [
        ("bp", 2, 2, "conv", SGD, "zmq"),
        ("gpipe", 3, 1, "conv", ADAM, "zmq"),
        ("1f1b", 4, 2, "conv", SGD, "ray"),
        ("ddg", 4, 1, "conv", ADAM, "zmq"),
        ("fr", 3, 2, "conv", SGD, "zmq"),
        ("fr", 2, 1, "mlp", ADAM, "ray"),
        ("adl", 8, 4, "mlp", SGD, "zmq"),
        ("adl", 2, 2, "conv", ADAM, "ray"),
        ("adl", 1, 1, "conv", SGD, "zmq"),
    ],
)
def test_actors_equal_the_serial_reference(
    method, stages, accumulate, network, optimiser, wire, tmp_path
):
    model = {"conv": conv_bn64, "mlp": mlp64}[network](1)
    before = copy.deepcopy(model.state_dict())
    data = batches(network, 6, ragged=True, seed=3)
    cuts = even_cuts(model, stages)
    result = fit(
        model,
        data,
        tmp_path,
        method=method,
        stages=cuts or 1,
        accumulate=accumulate,
        optimiser=optimiser,
        wire=wire,
    )
    expected = reference.train(
        model,
        method=method,
        cuts=cuts,
        epochs=[data, data],
        loss_fn=F.cross_entropy,
        optimiser=optimiser,
        accumulate=accumulate,
    )
    assert list(result.model.state_dict()) == list(before)
    for name, tensor in expected.state.items():
        torch.testing.assert_close(result.model.state_dict()[name], tensor, rtol=1e-10, atol=1e-13)
        if name.endswith("num_batches_tracked"):
            assert int(tensor) == 12
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    total = [
        sum(row["stage_gradients"][k] for row in result.table.to_pylist()) for k in range(stages)
    ]
    assert total == [12] * stages
    late = sum(sum(map(sum, windows)) for windows in expected.staleness)
    assert result.summary["staleness_mean"] == pytest.approx(late / (12 * stages))


@pytest.mark.parametrize(
    ("method", "wire", "more"),
    [("dni", "zmq", {}), ("dgl", "ray", {}), ("dsp", "zmq", {"sigma_every": 2})],
)
def test_actors_compute_what_one_process_does(method, wire, more, tmp_path):
    model = conv_bn64(1)
    data = batches("conv", 6, ragged=True, seed=3)
    given = {"method": method, "accumulate": 2, **more}
    result = fit(model, data, tmp_path, stages=[2, 5, 7], wire=wire, **given)
    alone = run_pipeline(model, cuts=[2, 5, 7], epochs=[data, data], optimiser=SGD, **given)
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], tensor, rtol=1e-10, atol=1e-13)
    row = result.table.to_pylist()[-1]
    assert row["stage_staleness_counts"] == [
        next(r["staleness_counts"] for r in alone.rows[::-1] if r["stage"] == k) for k in range(4)
    ]
    if method == "dni":
        assert [each is None for each in row["stage_synthesis_mse"]] == [False, False, False, True]
    elif method == "dgl":
        assert all(loss > 0 for loss in row["stage_loss"])
    else:
        (merged,) = [r for r in RowMerger(4).add(alone.rows) if r["epoch"] == 2]
        assert row["sigma"] == pytest.approx(merged["sigma"], rel=1e-9)


@pytest.mark.parametrize("method", ["adl", "fr"])
def test_two_runs_are_bit_identical_on_either_wire(method, tmp_path):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(16, 4),
    )
    data = [(x.float(), y) for x, y in batches("conv", 8, ragged=True, seed=5)]
    run = functools.partial(fit, model, data, tmp_path, method=method, stages=[2, 6], seed=7)
    first, second, third = run(wire="zmq"), run(wire="zmq"), run(wire="ray")
    other = run(wire="zmq", seed=8)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])
        assert torch.equal(tensor, third.model.state_dict()[name])
    assert not torch.equal(first.model[0].weight, other.model[0].weight)


def test_a_run_leaves_the_files_of_its_contract(tmp_path):
    model = mlp64(2)
    data = batches("mlp", 6, seed=1)
    result = fit(model, data, tmp_path, method="ddg", stages=3, test=data[:2], report_every=4)
    assert {path.name for path in result.path.iterdir()} == {
        "config.yaml",
        "metrics.parquet",
        "timeline.parquet",
        "result.json",
        "report.html",
        "checkpoints",
    }
    rows = pq.read_table(result.path / "metrics.parquet").to_pylist()
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (4, None),
        (6, 1),
        (8, None),
        (12, None),
        (12, 2),
    ]
    assert rows[-1] == result.metrics
    assert {"loss", "accuracy", "staleness_mean", "samples_per_s", "blocked_s", "messages"} <= set(
        rows[0]
    )
    config = yaml.safe_load((result.path / "config.yaml").read_text())
    assert config["delay"] == [1, 1]
    assert len(config["stages"]) == 2
    summary = json.loads((result.path / "result.json").read_text())
    assert summary["metrics"]["test_accuracy"] == result.metrics["test_accuracy"]
    assert summary["versions"]["torch"] == torch.__version__
    with result.checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "model.pt", weights_only=True)
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    twin.eval()
    with torch.no_grad():
        hits = [twin(x).argmax(1) == y for x, y in data[:2]]
    assert result.metrics["test_accuracy"] == pytest.approx(float(torch.cat(hits).double().mean()))


@pytest.mark.parametrize("method", ["fr", "adl"])
def test_lock_step_computes_the_same_numbers(tmp_path, method):
    model, data = conv_bn64(3), batches("conv", 5, ragged=True, seed=2)
    free = fit(model, data, tmp_path, method=method, stages=[2, 5])
    locked = fit(model, data, tmp_path, method=method, stages=[2, 5], barrier=True)
    for name, tensor in free.model.state_dict().items():
        assert torch.equal(tensor, locked.model.state_dict()[name])


def test_measured_delays_are_written_down_and_repeat_the_run(tmp_path):
    model, data = conv_bn64(4), batches("conv", 5, seed=2)
    measured = fit(model, data, tmp_path, method="ddg", stages=3, delay="auto")
    config = yaml.safe_load((measured.path / "config.yaml").read_text())
    assert len(config["delay"]) == 2
    assert all(delay >= 1 for delay in config["delay"])
    assert all(t > 0 for t in config["measured"]["message_s"])
    again = fit(model, data, tmp_path, method="ddg", stages=config["stages"], delay=config["delay"])
    for name, tensor in measured.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


class TwoInputs(nn.Module):
    def forward(self, pair):
        a, b = pair
        return a + 1, b * 2


class Skip(nn.Module):
    """Passes a tensor of integers along beside the features."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, pair):
        x, tag = pair
        return torch.tanh(self.linear(x)), tag


class Join(nn.Module):
    def forward(self, pair):
        x, tag = pair
        return x * tag[:, None]


def test_blocks_may_pass_tuples_of_tensors(tmp_path):
    model = nn.Sequential(TwoInputs(), Skip(), Skip(), Join())
    torch.manual_seed(0)
    data = [((torch.randn(6, 3), torch.randint(5, (6,))), torch.randint(3, (6,))) for _ in range(4)]
    result = fit(model, data, tmp_path, method="bp", stages=[1, 2, 3], epochs=1)
    plain = copy.deepcopy(model)
    optimizer = torch_optimiser(SGD)(plain.parameters())
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], tensor)


def test_autocast_clipping_schedules_and_any_optimiser_go_together(tmp_path):
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    data = [(x.float(), y) for x, y in batches("mlp", 8, seed=1)]
    trainer = PipelineTrainer(
        model,
        nn.CrossEntropyLoss(),
        method="adl",
        stages=2,
        optimizer=functools.partial(torch.optim.RMSprop, lr=0.01),
        schedule=Schedule(kind="steps", warmup_epochs=1, milestones=(2,)),
        clip_norm=0.5,
        clip_value=0.1,
        precision="bfloat16",
        run_config=RunConfig(storage_path=str(tmp_path)),
    )
    result = trainer.fit(data, epochs=3, progress=False)
    rates = [row["learning_rate"] for row in result.table.to_pylist()]
    # The rate of the next update: warm-up over 8 updates, then a tenth from epoch 2 on.
    assert rates == pytest.approx([0.01, 0.001, 0.001])
    assert all(torch.isfinite(t).all() for t in result.model.state_dict().values())


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    model = mlp64(5)
    data = batches("mlp", 6, seed=1)
    data[3] = (data[3][0] * float("nan"), data[3][1])
    with pytest.raises(NonFiniteLossError, match="batch 3 gave nan"):
        fit(model, data, tmp_path, method="adl", stages=3)


def test_a_later_batch_that_does_not_fit_is_named(tmp_path):
    model, data = mlp64(5), batches("mlp", 6, seed=1)
    data[4] = (data[4][0][:, :-1], data[4][1])
    with pytest.raises(RaylabError, match=r"forward of batch 4 with \[\(\(8, 5\)"):
        fit(model, data, tmp_path, method="ddg", stages=2)
    data[4] = {"x": 1}
    with pytest.raises(DataError, match="batch 4 of epoch 0 is a dict"):
        fit(model, data, tmp_path, method="ddg", stages=2)


def test_resources_that_are_not_there_are_named_after_the_stated_wait(tmp_path):
    model, data = mlp64(5), batches("mlp", 3, seed=1)
    with pytest.raises(ResourceError, match=r"within 1 s \(CPU: 200 needed, 2 in the cluster"):
        fit(model, data, tmp_path, stages=2, resources_per_stage={"CPU": 100}, wait_s=1)
    with pytest.raises(ResourceError, match="GPU: 2 needed, 0 in the cluster"):
        fit(model, data, tmp_path, stages=2, resources_per_stage={"CPU": 0.5, "GPU": 1}, wait_s=1)
    # The cluster is not blocked by the attempts.
    assert fit(model, data, tmp_path, stages=2, epochs=1).metrics["step"] == 3


def test_bad_models_and_batches_are_refused_before_actors_start(tmp_path):
    model, data = mlp64(5), batches("mlp", 3, seed=1)
    with pytest.raises(ModelError, match="stages=12 for a chain of 9"):
        fit(model, data, tmp_path, stages=12)
    with pytest.raises(DataError, match=r"block '0' .* cannot take \(8, 2, 8, 8\)"):
        fit(model, batches("conv", 2, seed=1), tmp_path)
    with pytest.raises(DataError, match="one-shot iterator"):
        fit(model, iter(data), tmp_path)
    with pytest.raises(DataError, match="must not be empty"):
        fit(model, [], tmp_path)
    with pytest.raises(ModelError, match="cut points must ascend"):
        fit(model, data, tmp_path, stages=[5, 3])
    tied = mlp64(5)
    tied[6][0].weight = tied[2][0].weight
    with pytest.raises(ModelError, match="blocks '2' and '6' share weights"):
        fit(tied, data, tmp_path, stages=[4])
    with pytest.raises(ModelError, match="loss_fn must return one number"):
        PipelineTrainer(
            model,
            nn.CrossEntropyLoss(reduction="none"),
            run_config=RunConfig(storage_path=str(tmp_path)),
        ).fit(data, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a"),
        DataError("b"),
        ModelError("c"),
        NonFiniteLossError("d"),
        ResourceError("e"),
        RaylabError("f"),
        StageError("g"),
        BatchError("h"),
        MailboxError("i"),
        PlacementError("j"),
        MechanismError("k"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_the_way_out_of_an_actor(error):
    @ray.remote
    def fail() -> None:
        raise error

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fail.remote())
    assert type(caught.value.cause) is type(error)
    assert str(caught.value.cause) == str(error)


@pytest.mark.usefixtures("cold")
def test_the_stage_that_dies_is_noticed(tmp_path):
    model = mlp64(5)
    data = _Endless(batches("mlp", 1, seed=1)[0], tmp_path / "pid")
    caught: list[BaseException] = []

    def train() -> None:
        try:
            fit(model, data, tmp_path / "runs", stages=2)
        except RaylabError as error:
            caught.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    os.kill(int(_wait_for(tmp_path / "pid")), signal.SIGKILL)
    thread.join(60)
    assert not thread.is_alive()
    assert "the process of one stage died" in str(caught[0])


class _Endless:
    """The same batch for ever; the process that reads it writes its number down."""

    def __init__(self, batch, path):
        self.batch, self.path = batch, path

    def __iter__(self):
        yield self.batch
        aside = self.path.with_suffix(".new")
        aside.write_text(str(os.getpid()))
        aside.rename(self.path)
        while True:
            yield self.batch


def _wait_for(path: Path, timeout_s: float = 60) -> str:
    """Return what the file holds, as soon as it is there."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        pause.wait(0.02)
    return path.read_text()


_SCRIPT = """
import sys, torch
from torch import nn
from ray.train import RunConfig
from raylab import PipelineTrainer
from tests.actor.test_pipeline_trainer import _Endless
from pathlib import Path
folder = Path(sys.argv[1])
batch = (torch.randn(4, 3), torch.randint(2, (4,)))
PipelineTrainer(
    nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.CrossEntropyLoss(), stages=2,
    run_config=RunConfig(storage_path=str(folder / "runs")),
).fit(_Endless(batch, folder / "pid"))
"""


@pytest.mark.usefixtures("cold")
def test_ctrl_c_leaves_no_process_and_no_socket_behind(tmp_path):
    address = ray.get_runtime_context().gcs_address
    before = set(Path(tempfile.gettempdir()).glob("raylab-*"))
    script = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        env={**os.environ, "RAY_ADDRESS": address},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    stage = int(_wait_for(tmp_path / "pid"))
    script.send_signal(signal.SIGINT)
    _, errors = script.communicate(timeout=60)
    assert script.returncode != 0
    assert "KeyboardInterrupt" in errors
    wait_until_gone(stage)
    assert set(Path(tempfile.gettempdir()).glob("raylab-*")) <= before
