"""The stages' spans out of their reports, as rows of timeline.parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["timeline_rows"]


def timeline_rows(reports: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a span: `stage`, `kind`, `batch`, `start_s` and `end_s`.

    Args:
        reports: of the stages; where `timeline` is in one, it is a list of (kind, batch, start,
            end), the times in seconds on the wall's clock.

    >>> timeline_rows([{"stage": 1, "timeline": [("forward", 0, 5.0, 5.5)]}, {"stage": 0}])
    [{'stage': 1, 'kind': 'forward', 'batch': 0, 'start_s': 5.0, 'end_s': 5.5}]
    """
    rows = []
    for report in reports:
        spans: Sequence[tuple[str, int, float, float]] = report.get("timeline", ())
        rows += [
            {"stage": report["stage"], "kind": k, "batch": b, "start_s": start, "end_s": end}
            for k, b, start, end in spans
        ]
    return rows
