"""What a stage publishes through Ray's metrics, for Prometheus and Ray's dashboard.

    raylab_batches_total     batches that have entered the stage
    raylab_samples_total     samples trained with, counted at the stage that has the loss
    raylab_staleness         mean of the last report, in updates
    raylab_mailbox_depth     messages that wait in the stage's inboxes now
    raylab_blocked_seconds   time waited for messages and credits since the run began

Every one has the tags `stage`, `method` and `run`. They are set by the thread that answers the
driver, a few times a second, and cost the computation nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.util.metrics import Counter, Gauge

from actors.groups.metrics_guard import MetricsGuard
from actors.pipeline.runner import StageRunner

__all__ = ["StageMetrics"]

_KEYS = ("stage", "method", "run")


class StageMetrics:
    """The metrics of one stage; whatever goes wrong in here is logged once and ends no run.

    Args:
        stage: of the pipeline.
        tags: `method` and `run`.
    """

    def __init__(self, stage: int, tags: Mapping[str, str]) -> None:
        self._tags = {"stage": str(stage), **{key: tags.get(key, "") for key in _KEYS[1:]}}
        self._batches = 0
        self._guard = MetricsGuard("the stage")
        with self._guard.watching():
            self._batches_total = Counter("raylab_batches_total", "batches begun", _KEYS)
            self._samples_total = Counter("raylab_samples_total", "samples trained with", _KEYS)
            self._staleness = Gauge("raylab_staleness", "mean staleness, updates", _KEYS)
            self._depth = Gauge("raylab_mailbox_depth", "messages in the inboxes", _KEYS)
            self._blocked = Gauge("raylab_blocked_seconds", "time waited since the start", _KEYS)

    def publish(self, runner: StageRunner, rows: Sequence[Mapping[str, Any]]) -> None:
        """Publish where `runner` stands, and the figures of its new reports."""
        if self._guard.works:
            with self._guard.watching():
                self._publish(runner, rows)

    def _publish(self, runner: StageRunner, rows: Sequence[Mapping[str, Any]]) -> None:
        batches = runner.loop.batches
        if batches > self._batches:
            self._batches_total.inc(batches - self._batches, self._tags)
        self._batches = batches
        self._depth.set(runner.waiting_messages(), self._tags)
        self._blocked.set(runner.blocked_s, self._tags)
        for row in rows:
            if row.get("samples"):
                self._samples_total.inc(row["samples"], self._tags)
            if row.get("gradients"):
                self._staleness.set(row["staleness_sum"] / row["gradients"], self._tags)
