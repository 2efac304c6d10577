"""What stages publish through Ray's metrics is at the node's Prometheus endpoint."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray
import torch
from torch import nn

from actors.ray_metrics import StageMetrics
from raylab import PipelineTrainer

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
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - our own node
        text: str = answer.read().decode()
    return text
