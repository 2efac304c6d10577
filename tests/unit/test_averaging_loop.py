"""The loop of an averaging run with all replicas in this process: shards, rows, checkpoints."""

from __future__ import annotations

import copy
import functools
import json

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from actors.checkpoint_plan import CheckpointPlan
from raylab import AveragingTrainer
from raylab.algorithms.averaging.flat import FlatTensors, trainable
from raylab.algorithms.averaging.states import mean_state
from raylab.cli.main import main
from raylab.config import AveragingConfig
from raylab.drivers.averaging.beginning import begin
from raylab.drivers.averaging.course import Course
from raylab.drivers.averaging.keeping import rewind, saved_steps
from raylab.drivers.averaging.resolved import resolve_averaging, with_method
from raylab.drivers.averaging.settings import AveragingSettings
from raylab.drivers.averaging.shards import Shards
from raylab.drivers.averaging.simulated import Replicas
from raylab.errors import CheckpointError, ConfigError, DataError, ModelError
from raylab.optimizers import Schedule
from raylab.records import Storage
from raylab.records.states import loadable
from tests.reference.averaging import averaged_buffers, eq_7
from tests.reference.networks import batches, conv_bn64, mlp64

pytestmark = pytest.mark.unit

DATA = batches("conv", 10, size=4, ragged=True, seed=1)
MLP = batches("mlp", 10, size=4, seed=1)
TEST = batches("conv", 5, size=6, ragged=True, seed=2)


def course(model=None, data=DATA, *, method="dasgd", epochs=2, **options):
    settings = {k: options.pop(k) for k in ("tau", "delay", "xi", "seed") if k in options}
    return Course(
        settings=AveragingSettings(method=method, least=1, most=1, **settings),
        model=conv_bn64(3) if model is None else model,
        loss_fn=F.cross_entropy,
        optimizer=options.pop("optimizer", functools.partial(SGD, lr=0.1, momentum=0.9)),
        schedule=options.pop("schedule", None),
        batches=data,
        test=options.pop("test", TEST),
        epochs=epochs,
        **options,
    )


class Kept:
    """Keeps the parts of every checkpoint as Ray Train's storage would."""

    def __init__(self):
        self.parts = {}

    def keep(self, step, parts):
        self.parts[step] = copy.deepcopy([loadable(dict(part)) for part in parts])


def run(plan, workers, parts=None, **options):
    kept = Kept()
    replicas = Replicas(plan, workers, keeper=kept, **options)
    if parts:
        begin(plan, replicas.loop, replicas.workers, parts)
    replicas.loop.run()
    return replicas, kept


def taken(shards, workers, **where):
    """Return the batches of all workers, round by round."""
    where = {"epoch": 0, "taken": 0, **where}
    return [
        [x for x, _ in each]
        for each in shards.rounds(workers=workers, ranks=range(workers), **where)
    ]


class Unsized:
    """Batches that can only be iterated over."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __iter__(self):
        return iter(self.pairs)


@pytest.mark.parametrize("kind", [list, Unsized])
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 9])
def test_every_batch_is_somebodys_and_rounds_are_full(kind, workers):
    pairs = [(i, i) for i in range(7)]
    rounds = taken(Shards(kind(pairs), 0), workers)
    flat = [each for one in rounds for each in one]
    assert len(rounds) == -(-7 // workers)
    assert flat[:7] == list(range(7))
    assert flat[7:] == [i % 7 for i in range(len(flat) - 7)]
    # What others get, nobody has to make.
    alone = Shards(kind(pairs), 0).rounds(epoch=0, taken=0, workers=workers, ranks=[workers - 1])
    assert [x for ((x, _),) in alone] == [one[-1] for one in rounds]


@pytest.mark.parametrize("kind", [list, Unsized])
def test_a_number_of_workers_may_change_within_an_epoch(kind):
    shards = Shards(kind([(i, i) for i in range(8)]), 0)
    assert taken(shards, 2, taken=3) == [[3, 4], [5, 6], [7, 0]]
    assert taken(shards, 3, taken=8) == []


def test_a_shuffling_loader_gives_all_workers_one_order_and_another_every_epoch():
    data = TensorDataset(torch.arange(12), torch.arange(12))
    orders = []
    for epoch in (0, 0, 1):
        torch.manual_seed(len(orders))
        loader = DataLoader(data, batch_size=1, shuffle=True)
        rounds = Shards(loader, seed=3).rounds(epoch=epoch, taken=0, workers=1, ranks=[0])
        order = []
        for ((x, _),) in rounds:
            order.append(int(x))
            torch.rand(3)  # what the network draws in between
        orders.append(order)
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(12))


def test_something_that_is_no_pair_is_named():
    with pytest.raises(DataError, match=r"a batch must be a pair \(x, y\), but got int"):
        taken(Shards([1, 2], 0), 1)


def test_a_run_is_eq_7_and_its_rows_and_model_are_of_the_mean():
    replicas, _ = run(course(tau=4, delay=1, xi=0.25), 3)
    steps = [[DATA[(3 * r + j) % 10] for j in range(3)] for r in range(4)] * 2
    weights, running = eq_7(
        conv_bn64(3), steps, tau=4, delay=1, xi=0.25, lr=lambda k: 0.1, momentum=0.9
    )
    mean = {name: sum(w[name] for w in weights) / 3 for name in weights[0]}
    expected = {**mean, **averaged_buffers(running)}
    found = replicas.loop.model.state_dict()
    assert set(found) == set(expected)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-13)
    model = replicas.loop.model.eval()
    with torch.no_grad():
        outputs = [(model(x), y) for x, y in TEST]
    count = sum(len(y) for _, y in outputs)
    loss = sum(float(F.cross_entropy(out, y, reduction="sum")) for out, y in outputs) / count
    correct = sum(int((out.argmax(1) == y).sum()) for out, y in outputs)
    rows = replicas.loop.rows
    assert [(row["epoch"], row["step"], row["workers"]) for row in rows] == [(1, 4, 3), (2, 8, 3)]
    assert rows[-1]["test_loss"] == pytest.approx(loss, rel=1e-10)
    assert rows[-1]["test_accuracy"] == pytest.approx(correct / count)
    assert rows[0]["consensus_distance"] > 0
    assert rows[0]["bytes"] == 3 * sum(p.numel() for p in model.parameters()) * 8


def test_rows_in_between_come_where_they_are_asked_for():
    replicas, _ = run(course(report_every=3, evaluate_every=2, epochs=3), 2)
    rows = replicas.loop.rows
    expected = [(None, 3), (1, 5), (None, 6), (None, 9), (2, 10), (None, 12), (3, 15), (None, 15)]
    assert sorted((row["step"], row["epoch"] or 9) for row in rows) == sorted(
        (step, epoch or 9) for epoch, step in expected
    )
    assert [row["epoch"] for row in rows if row["test_loss"] is not None] == [2, 3]
    assert sum(row["samples"] for row in rows) == 3 * sum(len(y) for _, y in DATA)


@pytest.mark.parametrize("method", ["minibatch_sgd", "dasgd"])
def test_a_run_goes_on_from_any_checkpoint_bit_for_bit(method):
    plan = course(
        method=method,
        epochs=3,
        checkpoints=CheckpointPlan(every_batches=2),
        optimizer=functools.partial(Adam, lr=0.01),
        schedule=Schedule(kind="cosine", epochs=3),
        report_every=4,
    )
    whole, kept = run(plan, 2)
    assert len(kept.parts) >= 4
    for step, parts in list(kept.parts.items())[::2]:
        again, _ = run(plan, 2, parts)
        for here, there in zip(whole.workers, again.workers, strict=True):
            assert torch.equal(here.weights.read(), there.weights.read()), step
        for row, other in zip(whole.loop.rows, again.loop.rows, strict=True):
            for column in ("epoch", "step", "loss", "accuracy", "test_loss", "learning_rate"):
                assert row[column] == other[column], (step, column)


def test_checkpoints_wait_until_no_average_is_under_way():
    plan = course(
        mlp64(blocks=2),
        MLP,
        tau=4,
        delay=2,
        checkpoints=CheckpointPlan(every_batches=1),
        epochs=2,
        test=None,
    )
    _, kept = run(plan, 1)
    # After steps 4, 5; 8, 9; ... one is on its way.
    assert [step for step in kept.parts if step % 4 in (0, 1) and step > 2] == []
    assert {step % 4 for step in kept.parts} == {1, 2, 3}


def test_the_first_workers_clock_decides_for_all():
    class Clock:
        now = 0.0

        def __call__(self):
            self.now += 1.0
            return self.now

    plan = course(
        mlp64(blocks=2), MLP, tau=2, checkpoints=CheckpointPlan(every_s=50.0), epochs=12, test=None
    )
    _, kept = run(plan, 2, clock=Clock())
    assert 1 <= len(kept.parts) <= 4


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 3), (3, 1)])
def test_other_workers_begin_at_the_mean_and_take_the_rest_of_the_epoch(before, after):
    plan = course(
        epochs=2,
        checkpoints=CheckpointPlan(every_batches=2),
        schedule=Schedule(kind="cosine", epochs=2),
        xi=0.5,
        tau=2,
    )
    _, kept = run(plan, before)
    step, parts = next(iter(kept.parts.items()))
    mean = mean_state([part["replica"]["model"] for part in parts])
    kept_rows = parts[0]["loop"]["taken"]
    replicas = Replicas(plan, after)
    begin(plan, replicas.loop, replicas.workers, parts)
    for worker in replicas.workers:
        for name, tensor in worker.model.state_dict().items():
            assert torch.equal(tensor, mean[name]), name
        assert worker.step == step
    rate = replicas.workers[0].optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(
        0.1 * plan.schedule.factor(kept_rows // after, -(-10 // after)), rel=1e-12
    )
    replicas.loop.run()
    rows = replicas.loop.rows
    assert rows[-1]["workers"] == after
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["step"] == step + -(-max(0, 10 - kept_rows) // after)
    assert rows[0]["samples"] >= sum(len(y) for _, y in DATA)


def test_a_checkpoint_of_other_settings_is_refused():
    plan = course(checkpoints=CheckpointPlan(every_batches=2))
    _, kept = run(plan, 2, about={"tau": 4})
    parts = next(iter(kept.parts.values()))
    with pytest.raises(ConfigError, match="tau was 4 and is 8"):
        run(plan, 2, parts, about={"tau": 8})


def test_only_what_ray_train_calls_whole_is_a_checkpoint(tmp_path):
    folder = Storage.at(tmp_path)
    assert saved_steps(folder) == []
    results = [{"checkpoint_dir_name": f"step-{n:08d}", "metrics": {}} for n in (3, 6, 9)]
    snapshot = {
        "checkpoint_results": results,
        "checkpoint_report_indices": [4, 5, 7],
        "latest_checkpoint_result": results[-1],
    }
    (tmp_path / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    for n in (3, 6, 9, 12):
        (tmp_path / f"step-{n:08d}").mkdir()
    with pytest.raises(CheckpointError, match=r"step 12 .* but there are 3, 6, 9"):
        rewind(folder, 12)
    rewind(folder, 6)
    assert saved_steps(folder) == [3, 6]
    assert not (tmp_path / "step-00000009").exists()
    after = json.loads((tmp_path / "checkpoint_manager_snapshot.json").read_text())
    assert after["checkpoint_report_indices"] == [4, 5]
    assert after["latest_checkpoint_result"]["checkpoint_dir_name"] == "step-00000006"
    (tmp_path / "checkpoint_manager_snapshot.json").write_text("{")
    with pytest.raises(CheckpointError, match="list of checkpoints that Ray Train writes"):
        saved_steps(folder)


def test_auto_takes_the_planners_numbers():
    settings = functools.partial(AveragingSettings, method="dasgd", least=2, most=2)
    found = settings(tau="auto", delay="auto").decided(step_s=1.0, average_s=2.5)
    assert (found.tau, found.delay) == (4, 3)
    found = settings(tau=3, delay="auto").decided(step_s=1.0, average_s=9.0)
    assert (found.tau, found.delay) == (3, 2)
    assert settings(tau=8).decided(1.0, 1.0) == settings(tau=8)
    with pytest.raises(ConfigError, match=r"delay=auto is measured .* local_sgd has delay=0"):
        AveragingSettings(method="local_sgd", least=1, most=1, delay="auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dasg"}, "did you mean dasgd"),
        ({"tau": 2, "delay": 3}, "0 <= delay < tau"),
        ({"workers": (4, 1)}, "the fewest and the most"),
        ({"workers": 0}, "workers must be a number >= 1"),
        ({"average_top_k": 2.0}, "0 < average_top_k <= 1"),
        ({"clip_norm": -1.0}, "clip_norm > 0"),
        ({"wait_s": 0.0}, "wait_s > 0"),
        ({"checkpoint_every": -1}, "checkpoint_every >= 0"),
        ({"seed": -1}, "seed >= 0"),
    ],
)
def test_arguments_out_of_range_are_named_before_any_actor_starts(options, message):
    with pytest.raises(ConfigError, match=message):
        AveragingTrainer(mlp64(), nn.CrossEntropyLoss(), **options)


@pytest.mark.parametrize(
    ("model", "loss_fn", "data", "error", "message"),
    [
        (mlp64(), F.cross_entropy, [], DataError, "must not be empty"),
        (mlp64(), F.cross_entropy, iter([]), DataError, "one-shot iterator"),
        (mlp64(), F.cross_entropy, DATA, DataError, "first batch does not fit the model"),
        (mlp64(), F.mse_loss, batches("mlp", 1), ModelError, "loss does not fit"),
        (nn.ReLU(), F.cross_entropy, batches("mlp", 1), ModelError, "a parameter to train"),
        (
            mlp64(),
            functools.partial(F.cross_entropy, reduction="none"),
            batches("mlp", 1),
            ModelError,
            r"one number, but it is of shape \(8,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named_before_any_actor_starts(model, loss_fn, data, error, message):
    with pytest.raises(error, match=message):
        AveragingTrainer(model, loss_fn).fit(data, progress=False)


def test_a_configuration_is_resolved_once_and_stays_so():
    config = resolve_averaging(AveragingConfig(name="x"))
    assert (config.tau, config.delay, config.xi, config.lr) == (4, 1, 0.25, 0.05)
    assert resolve_averaging(config) == config
    assert resolve_averaging(AveragingConfig(tau="auto", delay="auto")).tau == "auto"
    both = config.model_copy(update=with_method("minibatch_sgd"))
    assert resolve_averaging(both).tau == 1
    keys = {"batch_size": 32, "lr": 0.1, "base_batch_size": 32}
    scaled = AveragingConfig(method="minibatch_sgd", workers=4, **keys)
    assert resolve_averaging(scaled).lr == pytest.approx(0.4)


def test_a_simulation_leaves_the_folder_of_a_run_and_repeats_itself(capsys, tmp_path):
    def simulated(*words):
        assert main(["simulate", *words, f"storage={tmp_path}", "--json", "--quiet"]) == 0
        return json.loads(capsys.readouterr().out)

    summary = simulated(
        *("dasgd", "workers=3", "data=digits", "batch_size=256", "model=mlp", "step_s=0.01"),
        *("ethernet_gbit_s=0.01", "name=one"),
    )
    folder = tmp_path / "one"
    assert {path.name for path in folder.iterdir()} >= {
        *("config.yaml", "metrics.parquet", "result.json", "report.html", "checkpoints"),
    }
    assert (summary["kind"], summary["clock"], summary["workers"]) == ("averaging", "virtual", 3)
    row, t_c = summary["metrics"], summary["average_s"]
    assert row["averages"] == 0  # of two steps, none is the fourth
    assert row["blocked_s"] == 0
    again = simulated(str(folder / "config.yaml"), "name=two")
    assert again["metrics"] == row
    synchronous = simulated(
        str(folder / "config.yaml"), "name=four", "method=local_sgd", "tau=2", "delay=0", "xi=0"
    )
    assert synchronous["metrics"]["averages"] == 1
    assert synchronous["metrics"]["blocked_s"] == pytest.approx(t_c)
    assert synchronous["time_s"] == pytest.approx(2 * 0.01 + t_c)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["tau"], config["delay"], config["xi"]) == (4, 1, 0.25)


def test_a_simulation_says_what_it_cannot_do(capsys):
    assert main(["simulate", "dasgd", "tau=auto", "model=mlp", "--quiet"]) == 2
    assert "give step_s" in capsys.readouterr().err
    assert main(["simulate", "dasgd", "workers=3", "workers_per_node=2"]) == 2
    assert "must divide workers" in capsys.readouterr().err


# ------------------------------------------------------------------ an end that is asked for


@pytest.mark.parametrize("delay", [0, 1])
def test_a_run_that_is_asked_to_end_has_the_mean_of_where_it_is_then(delay):
    """Not before a first row, which there is after 5 steps, and where no average is under way."""
    options = {"tau": 3, "delay": delay, "epochs": 9, "test": None}
    whole, _ = run(course(**options), 2)
    asked, kept = run(course(**options, listened=True), 2, asked=lambda: True)
    assert asked.loop.stopped
    assert not whole.loop.stopped
    assert [row["epoch"] for row in asked.loop.rows] == [1]
    assert asked.loop.step == {0: 6, 1: 7}[delay]
    assert not kept.parts
    flats = [FlatTensors(trainable(each.model)).read() for each in asked.workers]
    mean = FlatTensors(trainable(asked.loop.model)).read()
    torch.testing.assert_close(mean, (flats[0] + flats[1]) / 2)


def test_a_run_that_is_to_leave_keeps_a_checkpoint_and_goes_on_from_it_bit_for_bit():
    """Where no average is under way: after step 16, which begins none with tau = 3."""
    options = {"tau": 3, "delay": 1, "epochs": 9, "test": None}
    options["checkpoints"] = CheckpointPlan(every_batches=10**6)
    whole, _ = run(course(**options), 2)
    left, kept = run(course(**options), 2, leaves=lambda: True)
    assert left.loop.left
    assert not left.loop.stopped
    assert list(kept.parts) == [left.loop.step]
    assert left.loop.step < whole.loop.step
    again, _ = run(course(**options), 2, parts=kept.parts[left.loop.step])
    assert not again.loop.left
    for here, there in zip(whole.workers, again.workers, strict=True):
        assert torch.equal(here.weights.read(), there.weights.read())


def test_nobody_is_asked_where_nobody_listens():
    found, _ = run(course(), 2, asked=lambda: pytest.fail("asked"))
    assert not found.loop.stopped
