"""What actors publish through Ray's metrics is at the Prometheus endpoint of their node."""

from __future__ import annotations

import re
import time
import types
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import ray
import torch
from ray.train import RunConfig
from torch import nn

from actors.groups.group import Group
from actors.pipeline.ray_metrics import StageMetrics
from raylab import ParameterServerTrainer, PipelineTrainer

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

RUN = "a-run-of-its-own"
NAMES = (
    "raylab_batches_total",
    "raylab_samples_total",
    "raylab_staleness",
    "raylab_mailbox_depth",
    "raylab_blocked_seconds",
)


def scraped() -> str:
    """Return the text of the node's endpoint."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    assert node["MetricsExportPort"] > 0, "ray exports nothing: pip install 'ray[default]'"
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], bool]], list[str]]:
    """Keep a run's actors, which export once a second, until the endpoint shows what it must."""

    def arm(all_there: Callable[[str], bool]) -> list[str]:
        texts: list[str] = []
        leave = Group.__exit__

        def leave_when_exported(group: Group, *error: Any) -> None:
            deadline = time.monotonic() + 120
            # Every actor exports by itself; one may be there before the other.
            while not all_there(text := scraped()):
                assert time.monotonic() < deadline, text
            texts.append(text)
            leave(group, *error)

        monkeypatch.setattr(Group, "__exit__", leave_when_exported)
        return texts

    return arm


def values(text: str, name: str, tag: str) -> dict[str, float]:
    """Return a metric of the test's run by one of its tags."""
    found = {}
    for labels, value in re.findall(rf"^ray_{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags.get("run") == RUN:
            found[tags[tag]] = float(value)
    return found


def test_a_stages_figures_are_at_the_endpoint_of_its_node(tmp_path, exported):
    both, last = {"0", "1"}, {"1"}

    def all_there(text: str) -> bool:
        stages = {name: last if name == "raylab_samples_total" else both for name in NAMES}
        found = {name: values(text, name, "stage") for name in NAMES}
        return all(set(found[name]) == stages[name] for name in NAMES) and all(
            value == 12.0 for value in found["raylab_batches_total"].values()
        )

    texts = exported(all_there)
    trainer = PipelineTrainer(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        nn.CrossEntropyLoss(),
        method="ddg",
        stages=[1],
        resources_per_stage={"CPU": 0.1},
        run_config=RunConfig(name=RUN, storage_path=str(tmp_path)),
    )
    batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(6)]
    trainer.fit(batches, epochs=2, progress=False)
    (text,) = texts
    assert values(text, "raylab_samples_total", "stage") == {"1": 12.0 * 16}
    assert values(text, "raylab_staleness", "stage") == {"0": 1.0, "1": 0.0}
    assert set(values(text, "raylab_staleness", "method")) == {"ddg"}


def test_a_servers_and_its_workers_figures_are_at_the_endpoint(tmp_path, exported):
    made = 60

    def all_there(text: str) -> bool:
        applied = values(text, "raylab_server_messages_total", "method").get("dis_dfsdca", 0.0)
        workers = values(text, "raylab_worker_messages_total", "worker")
        shown = values(text, "raylab_server_figure", "figure")
        # What is under way when the run ends is applied, too, then certified.
        return applied >= made and {sum(workers.values()), shown.get("messages")} == {applied}

    texts = exported(all_there)
    found = ParameterServerTrainer(
        "ridge",
        workers=2,
        resources_per_worker={"CPU": 0.1},
        run_config=RunConfig(name=RUN, storage_path=str(tmp_path)),
    ).fit("sparse:n=200,d=10,density=0.5", messages=made, tolerance=0, progress=False)
    (text,) = texts
    last = found.metrics
    shown = values(text, "raylab_server_figure", "figure")
    assert shown["messages"] == last["messages"]
    for name in ("duality_gap", "primal", "relation", "staleness_mean", "blocked_s", "workers"):
        assert shown[name] == pytest.approx(last[name])
    for name in ("samples", "refused", "bytes"):
        column = {"samples": "samples_seen"}.get(name, name)
        total = values(text, f"raylab_server_{name}_total", "method").get("dis_dfsdca", 0.0)
        assert total >= last[column]
    assert set(values(text, "raylab_worker_blocked_seconds", "worker")) == {"0", "1"}


def test_metrics_that_cannot_be_made_or_set_fail_no_run(monkeypatch, caplog):
    runner = types.SimpleNamespace(
        loop=types.SimpleNamespace(batches=3), blocked_s=0.0, waiting_messages=lambda: 1 / 0
    )
    metrics = StageMetrics(0, {})
    metrics.publish(runner, [])  # type: ignore[arg-type]
    metrics.publish(runner, [{"samples": None}])  # type: ignore[arg-type]

    def broken(*_: object) -> None:
        raise RuntimeError("no metrics today")

    monkeypatch.setattr("actors.pipeline.ray_metrics.Counter", broken)
    StageMetrics(0, {}).publish(runner, [])  # type: ignore[arg-type]
    told = [record.message for record in caplog.records]
    assert told == ["the stage publishes no metrics any more"] * 2
