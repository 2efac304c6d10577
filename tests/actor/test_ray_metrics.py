"""What stages publish through Ray's metrics is at the node's Prometheus endpoint."""

from __future__ import annotations

import re
import time
import types
import urllib.request
from typing import Any

import pytest
import ray
import torch
from ray.train import RunConfig
from torch import nn

from actors.pipeline.ray_metrics import StageMetrics
from actors.pipeline.supervisor import Supervisor
from raylab import PipelineTrainer

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


def test_a_stages_figures_are_at_the_endpoint_of_its_node(tmp_path, monkeypatch):
    texts: list[str] = []
    leave = Supervisor.__exit__

    def leave_when_exported(supervisor: Supervisor, *error: Any) -> None:
        # The actors live until here, and export once a second.
        deadline = time.monotonic() + 120
        # Every stage exports by itself; one may be there before the other.
        while not _all_there(text := scraped()):
            assert time.monotonic() < deadline, text
        texts.append(text)
        leave(supervisor, *error)

    monkeypatch.setattr(Supervisor, "__exit__", leave_when_exported)
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
    assert _values(text, "raylab_batches_total") == {"0": 12.0, "1": 12.0}
    assert _values(text, "raylab_samples_total") == {"1": 12.0 * 16}
    assert _values(text, "raylab_staleness") == {"0": 1.0, "1": 0.0}
    assert set(_values(text, "raylab_blocked_seconds")) == {"0", "1"}


def _all_there(text: str) -> bool:
    both, last = {"0", "1"}, {"1"}
    stages = {name: last if name == "raylab_samples_total" else both for name in NAMES}
    return all(set(_values(text, name)) == stages[name] for name in NAMES) and all(
        value == 12.0 for value in _values(text, "raylab_batches_total").values()
    )


def _values(text: str, name: str) -> dict[str, float]:
    """Return a metric of the test's run by stage."""
    found = {}
    for labels, value in re.findall(rf"^ray_{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if (tags.get("run"), tags.get("method")) == (RUN, "ddg"):
            found[tags["stage"]] = float(value)
    return found


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
