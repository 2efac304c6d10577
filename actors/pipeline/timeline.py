"""What a stage did when: the spans of a run's first batches, for a chart of the pipeline.

Noting a span costs two readings of the clock, which most of them share with the counting of
blocked time, and one append; after the first batches, nothing but a comparison.
"""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

__all__ = ["Span", "SpanKind", "Timeline"]

SpanKind = Literal["forward", "backward", "update", "evaluate", "waiting"]

_MOST = 20_000
"""Spans that a stage keeps at most, whatever number of test batches comes between two epochs."""
_SHORTEST_WAIT_S = 20e-6
"""A look at an empty box takes some microseconds and is no waiting."""
_SAME_WAIT_S = 1e-3
"""A wait that was interrupted to see whether the run was stopped is one wait."""


class Span(NamedTuple):
    """One piece of a stage's time.

    Args:
        kind: what was done.
        batch: its index; for an update, a test batch or a wait: of the last forward before it.
        start: seconds since the epoch of time.time, comparable between processes of a machine.
        end: the same.
    """

    kind: SpanKind
    batch: int
    start: float
    end: float


class Timeline:
    """Spans until the forward of batch `batches`.

    Args:
        batches: how many batches are noted; 0: none.
    """

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._spans: list[Span] = []
        self._left = _MOST
        self._last = 0
        # perf_counter never jumps; this is where it stands on the wall's clock.
        self._epoch = time.time() - time.perf_counter()
        self.open = batches > 0

    def add(self, kind: SpanKind, batch: int | None, started: float, ended: float) -> None:
        """Note a span.

        Args:
            kind: of it.
            batch: of it; None: that of the last forward.
            started: by time.perf_counter.
            ended: by time.perf_counter.
        """
        if kind == "forward" and batch is not None:
            self._last = batch
            self.open = self.open and batch < self._batches
        if not self.open:
            return
        start, end = started + self._epoch, ended + self._epoch
        if kind == "waiting":
            if end - start < _SHORTEST_WAIT_S:
                return
            last = self._spans[-1] if self._spans else None
            if last is not None and last.kind == kind and start - last.end < _SAME_WAIT_S:
                self._spans[-1] = last._replace(end=end)
                return
        self._spans.append(Span(kind, self._last if batch is None else batch, start, end))
        self._left -= 1
        self.open = self._left > 0

    def take(self) -> list[Span]:
        """Return the spans since the last call."""
        spans, self._spans = self._spans, []
        return spans
