"""Where the time of a stage goes, and what passes through its boxes, from report to report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from actors.pipeline.boxes import Boxes
from actors.pipeline.timeline import Timeline
from actors.wires.messages import Message, size_bytes

__all__ = ["StageMeter"]


class StageMeter:
    """The times of one stage, in seconds, and the counts of its boxes.

    Args:
        boxes: of the stage.
        timeline: batches of the run whose timeline is kept.
    """

    def __init__(self, boxes: Boxes, timeline: int) -> None:
        self.blocked_s = 0.0
        """Time waited for messages and credits since the start."""
        self.timeline = Timeline(timeline)
        self._boxes = boxes
        self._reported: dict[str, tuple[float, float]] = {}
        self._began = self._since = time.perf_counter()
        self._testing_since: float | None = None
        self._blocked_s = 0.0

    def waited(self, started: float) -> None:
        """Count the time since `started`, by time.perf_counter, as blocked."""
        ended = time.perf_counter()
        self._blocked_s += ended - started
        self.blocked_s += ended - started
        if self.timeline.open:
            self.timeline.add("waiting", None, started, ended)

    def testing(self) -> None:
        """From here to the report is no time of training."""
        if self._testing_since is None:
            self._testing_since = time.perf_counter()

    def take(self) -> dict[str, Any]:
        """Return the figures since the last report, and begin anew."""
        now = time.perf_counter()
        tested_s = 0.0 if self._testing_since is None else now - self._testing_since
        row: dict[str, Any] = {
            "time_s": now - self._began,
            "trained_s": now - self._since - tested_s,
            "blocked_s": self._blocked_s,
            "mailbox_bytes_peak": sum(
                box.statistics.peak_bytes
                for box in (self._boxes.features_out, self._boxes.gradients_out)
                if box is not None
            ),
        }
        for name, box in self._boxes.named().items():
            figures = box.statistics
            row[f"{name}_messages"], row[f"{name}_bytes"] = self._passed(name)
            row[f"{name}_peak_depth"] = figures.peak_depth
            self._reported[name] = (figures.messages, figures.bytes)
        if spans := self.timeline.take():
            row["timeline"] = spans
        self._since, self._testing_since, self._blocked_s = now, None, 0.0
        return row

    def save(self) -> dict[str, Any]:
        """Return the figures since the last report, to go on from with `restore`."""
        now = time.perf_counter()
        return {
            "ran_s": now - self._began,
            "trained_s": now - self._since,
            "blocked_s": self._blocked_s,
            "boxes": {name: self._passed(name) for name in self._boxes.named()},
        }

    def restore(self, saved: Mapping[str, Any], under_way: Sequence[Message]) -> None:
        """Go on with what `save` returned.

        Args:
            saved: the figures.
            under_way: gradients that come with the checkpoint and not through their box.
        """
        now = time.perf_counter()
        self._began = now - saved["ran_s"]
        self._since = now - saved["trained_s"]
        self._blocked_s = saved["blocked_s"]
        self._reported = {
            name: (-messages, -size) for name, (messages, size) in saved["boxes"].items()
        }
        if under_way:
            messages, size = self._reported["gradients_in"]
            sizes = sum(size_bytes(message) for message in under_way)
            self._reported["gradients_in"] = (messages - len(under_way), size - sizes)

    def _passed(self, name: str) -> tuple[float, float]:
        figures = self._boxes.named()[name].statistics
        messages, size = self._reported.get(name, (0, 0))
        return figures.messages - messages, figures.bytes - size
