"""What the summary of a run says beside its last row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["server_figures"]


def server_figures(rows: Sequence[Mapping[str, Any]], ended_by: str, figure: str) -> dict[str, Any]:
    """Return what the summary of a run says beside its last row.

    Args:
        rows: of metrics.
        ended_by: tolerance, epochs or messages.
        figure: that the tolerance is of.
    """
    last = rows[-1]
    counts = [each for row in rows for each in enumerate(row["staleness_counts"])]
    total = sum(count for _, count in counts)
    return {
        "kind": "parameter_server",
        "ended_by": ended_by,
        "figure": figure,
        "messages": last["messages"],
        "samples_per_s": last["samples_seen"] / max(last["time_s"], 1e-12),
        "staleness_mean": sum(age * count for age, count in counts) / max(1, total),
        "staleness_max": max(row["staleness_max"] for row in rows),
    }
