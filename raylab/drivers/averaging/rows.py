"""The figures of W workers as one row of a table, and those of all rows as a summary.

Units stand in the names: `_s` seconds, `_bytes` and `bytes`, and counts without. Columns that begin
with `worker_` are lists, one value a worker. `consensus_distance` is the root mean square over the
workers of |x^j - mean x|, at the ends of epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raylab.drivers.averaging.course import Row

__all__ = ["merged_row", "summary_figures"]


def merged_row(
    workers: Sequence[Mapping[str, float]],
    *,
    epoch: int | None,
    step: int,
    time_s: float,
    trained_s: float,
    averages: int,
    learning_rate: float,
    test: Mapping[str, float],
    distances: Sequence[float] | None,
) -> Row:
    """Return the row.

    Args:
        workers: each one's figures, by name.
        epoch: that has ended, from 1; None: in the middle of one.
        step: local steps done.
        time_s: of the run.
        trained_s: since the last row, without tests and checkpoints.
        averages: taken since the last row.
        learning_rate: of the last step.
        test: columns of a test.
        distances: of the replicas from their mean.
    """
    samples = sum(each["samples"] for each in workers)
    weight = sum(each["weight"] for each in workers)
    correct = sum(each["correct"] for each in workers)
    counted = sum(each["counted"] for each in workers)
    return {
        "epoch": epoch,
        "step": step,
        "time_s": time_s,
        "loss": sum(each["loss_sum"] for each in workers) / weight if weight else None,
        "accuracy": correct / counted if counted and correct == correct else None,
        "test_loss": test.get("test_loss"),
        "test_accuracy": test.get("test_accuracy"),
        "samples": int(samples),
        "samples_per_s": samples / trained_s if trained_s > 0 else 0.0,
        "updates": step,
        "learning_rate": learning_rate,
        "averages": averages,
        "blocked_s": sum(each["blocked_s"] for each in workers) / len(workers),
        "blocked_share": _share(
            sum(each["blocked_s"] for each in workers), len(workers) * trained_s
        ),
        "bytes": int(sum(each["bytes"] for each in workers)),
        "trained_s": trained_s,
        "workers": len(workers),
        "consensus_distance": None
        if distances is None
        else math.sqrt(sum(each * each for each in distances) / len(distances)),
        "worker_blocked_s": [each["blocked_s"] for each in workers],
        "worker_loss": [
            each["loss_sum"] / each["weight"] if each["weight"] else math.nan for each in workers
        ],
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def summary_figures(rows: Sequence[Row], workers: int) -> dict[str, Any]:
    """Return what the summary of a run says beside its last row.

    Args:
        rows: of the run.
        workers: at its end.
    """
    trained_s = sum(row["trained_s"] for row in rows)
    return {
        "kind": "averaging",
        "workers": workers,
        "samples_per_s": sum(row["samples"] for row in rows) / max(trained_s, 1e-12),
        "blocked_share": sum(row["blocked_s"] for row in rows) / max(trained_s, 1e-12),
        "bytes": sum(row["bytes"] for row in rows),
    }
