"""What a run of a parameter server leaves in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.train import Checkpoint
from torch import Tensor

from raylab.drivers.result import Result
from raylab.records import RunFolder
from raylab.report import RunRecord
from raylab.report.page import report_page

__all__ = ["keep_server_run"]


def keep_server_run(
    folder: RunFolder,
    rows: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    ended_by: str,
    figure: str,
) -> Result:
    """Write rows, weights, summary and report into the run's folder; return the result.

    Args:
        folder: of the run.
        rows: of metrics.
        weights: by name.
        config: as config.yaml has it.
        ended_by: tolerance, epochs or messages.
        figure: that the tolerance is of.
    """
    table = folder.write_metrics(rows)
    written = folder.write_weights(dict(weights))
    last = dict(rows[-1])
    counts = [count for row in rows for count in enumerate(row["staleness_counts"])]
    messages = sum(count for _, count in counts)
    summary = folder.write_result(
        {
            "kind": "parameter_server",
            "config": dict(config),
            "seed": config.get("seed"),
            "ended_by": ended_by,
            "figure": figure,
            "metrics": last,
            "epochs": last["epoch"],
            "steps": last["step"],
            "messages": last["messages"],
            "time_s": last["time_s"],
            "samples_per_s": last["samples_seen"] / max(last["time_s"], 1e-12),
            "staleness_mean": sum(age * count for age, count in counts) / max(1, messages),
            "staleness_max": max((row["staleness_max"] for row in rows), default=0),
            "path": folder.folder.uri,
        }
    )
    record = RunRecord(name=folder.path.name, config=config, rows=rows, result=summary)
    folder.write_report(report_page([record]))
    return Result(
        metrics=last,
        table=table,
        weights=dict(weights),
        path=folder.path,
        filesystem=folder.folder.filesystem,
        checkpoint=Checkpoint(written.path, filesystem=written.filesystem),
        summary=summary,
    )
