"""What stages publish through Ray's metrics is at the node's Prometheus endpoint."""

from __future__ import annotations

import functools
import re
import time
import types
import urllib.request

import pytest
import ray
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.ray_metrics import StageMetrics
from actors.stage_actor import Feed
from actors.supervisor import Supervisor
from raylab.drivers.network import Network
from raylab.drivers.pipeline_run import PipelineRun
from raylab.drivers.settings import PipelineSettings
from raylab.planner import trace_blocks

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

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
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def test_a_stages_figures_are_at_the_endpoint_of_its_node():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(6)]
    settings = PipelineSettings(method="ddg", stages=2)
    network = Network(model)
    traces = trace_blocks(network.blocks, network.names, *_tuples(batches[0]), F.cross_entropy)
    sgd = functools.partial(torch.optim.SGD, lr=0.01)
    run = PipelineRun(settings, network, [1], traces, F.cross_entropy, sgd, None)
    feed = Feed(train=batches, test=None, epochs=2, parts=1, evaluate_every=1)
    tags = {"method": "ddg", "run": "a run of its own"}
    with Supervisor([{"CPU": 0.1}] * 2, threads=1, seed=0, wait_s=120, tags=tags) as supervisor:
        plan = run.prepare(supervisor, batches[0][:1], 0)
        run.carry_out(supervisor, plan, feed, lambda *_: None)
        # The actors live, and export once a second.
        deadline = time.monotonic() + 120
        while not all(_values(text := scraped(), name) for name in NAMES):
            assert time.monotonic() < deadline, text
    assert _values(text, "raylab_batches_total") == {"0": 12.0, "1": 12.0}
    assert _values(text, "raylab_samples_total") == {"1": 12.0 * 16}
    assert _values(text, "raylab_staleness")["1"] == 0.0
    assert 0 < _values(text, "raylab_staleness")["0"] <= 1.0
    assert set(_values(text, "raylab_blocked_seconds")) == {"0", "1"}


def _tuples(batch: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor], tuple[Tensor]]:
    return (batch[0],), (batch[1],)


def _values(text: str, name: str) -> dict[str, float]:
    """Return a metric of the test's run by stage."""
    found = {}
    for labels, value in re.findall(rf"^ray_{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags.get("run") == "a run of its own" and tags.get("method") == "ddg":
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

    monkeypatch.setattr("actors.ray_metrics.Counter", broken)
    StageMetrics(0, {}).publish(runner, [])  # type: ignore[arg-type]
    told = [record.message for record in caplog.records]
    assert told == ["the stage publishes no metrics any more"] * 2
