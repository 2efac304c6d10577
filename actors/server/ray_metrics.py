"""What a parameter server and its workers publish through Ray's metrics, for Prometheus.

    raylab_server_messages_total    messages applied; its rate() is messages a second
    raylab_server_samples_total     samples that they looked at
    raylab_server_refused_total     messages that were too stale, and computed anew
    raylab_server_bytes_total       bytes of tensors, both ways
    raylab_server_figure            the newest row of metrics, by the tag `figure`: duality_gap,
                                    primal, relation, staleness_mean, staleness_max, workers, …
    raylab_worker_messages_total    messages made, by the tag `worker`
    raylab_worker_blocked_seconds   time waited for replies since the worker began, likewise

Every one has the tags `method` and `run`. They are set by the threads that answer the driver, a few
times a second, and cost the computation nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray.util.metrics import Counter, Gauge

from actors.groups.metrics_guard import MetricsGuard
from actors.server.server_runner import ServerRunner
from actors.server.worker_runner import WorkerRunner

__all__ = ["ServerMetrics", "WorkerMetrics"]

_TAGS = ("method", "run")
_TOTALS = {
    "messages": "messages applied",
    "samples": "samples of applied messages",
    "refused": "messages that were too stale",
    "bytes": "bytes of tensors, both ways",
}


class ServerMetrics:
    """The metrics of a server.

    Args:
        tags: `method` and `run`.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = {key: tags.get(key, "") for key in _TAGS}
        self._before: dict[str, int] = dict.fromkeys(_TOTALS, 0)
        self._guard = MetricsGuard("the server")
        with self._guard.watching():
            self._totals = {
                name: Counter(f"raylab_server_{name}_total", says, _TAGS)
                for name, says in _TOTALS.items()
            }
            self._figures = Gauge(
                "raylab_server_figure", "of the newest row of metrics", (*_TAGS, "figure")
            )

    def begin(self, runner: ServerRunner) -> None:
        """Count from where `runner` goes on: what was before that has been counted."""
        self._before = runner.begun_with

    def publish(self, runner: ServerRunner, rows: Sequence[Mapping[str, Any]]) -> None:
        """Publish where `runner` stands, and the newest of its new rows."""
        if self._guard.works:
            with self._guard.watching():
                self._publish(runner, rows)

    def _publish(self, runner: ServerRunner, rows: Sequence[Mapping[str, Any]]) -> None:
        before, self._before = self._before, runner.totals()
        for name, now in self._before.items():
            if now > before[name]:
                self._totals[name].inc(now - before[name], self._tags)
        for name, value in rows[-1].items() if rows else ():
            if isinstance(value, int | float) and math.isfinite(value):
                self._figures.set(value, {**self._tags, "figure": name})


class WorkerMetrics:
    """The metrics of one worker.

    Args:
        worker: its number.
        tags: `method` and `run`.
    """

    def __init__(self, worker: int, tags: Mapping[str, str]) -> None:
        self._tags = {key: tags.get(key, "") for key in _TAGS} | {"worker": str(worker)}
        self._before = 0
        self._guard = MetricsGuard("the worker")
        keys = (*_TAGS, "worker")
        with self._guard.watching():
            self._messages = Counter("raylab_worker_messages_total", "messages made", keys)
            self._blocked = Gauge("raylab_worker_blocked_seconds", "time waited", keys)

    def begin(self) -> None:
        """Another runner begins, with no messages."""
        self._before = 0

    def publish(self, runner: WorkerRunner) -> None:
        """Publish where `runner` stands."""
        if self._guard.works:
            with self._guard.watching():
                now = runner.messages
                if now > self._before:
                    self._messages.inc(now - self._before, self._tags)
                self._before = now
                self._blocked.set(runner.waited_s, self._tags)
