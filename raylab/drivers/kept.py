"""The files that stay of a run. No Ray in here: simulated runs leave the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import Tensor

from raylab.records import RunFolder, Storage
from raylab.report import RunRecord
from raylab.report.page import report_page

__all__ = ["Kept", "write_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What was written.

    Args:
        table: of metrics.
        weights: folder of model.pt.
        summary: the content of result.json.
    """

    table: pa.Table
    weights: Storage
    summary: dict[str, Any]


def write_run(
    folder: RunFolder,
    rows: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    figures: Mapping[str, Any],
    *,
    timeline: Sequence[Mapping[str, Any]] = (),
) -> Kept:
    """Write rows, weights, summary and report into the run's folder.

    Args:
        folder: of the run.
        rows: of metrics.
        weights: by name.
        config: as config.yaml has it.
        figures: of the summary, those that runs of this kind have.
        timeline: spans of the first batches.
    """
    table = folder.write_metrics(rows)
    folder.write_timeline(timeline)
    written = folder.write_weights(weights)
    last = dict(rows[-1])
    summary = folder.write_result(
        {
            "config": dict(config),
            "seed": config.get("seed"),
            "metrics": last,
            # The last row of a run that was asked to end may be in the middle of one.
            "epochs": next((e for row in reversed(rows) if (e := row["epoch"]) is not None), 0),
            "steps": last["step"],
            "time_s": last["time_s"],
            **figures,
            "path": folder.folder.uri,
        }
    )
    record = RunRecord(
        name=folder.path.name, config=config, rows=rows, result=summary, timeline=timeline
    )
    folder.write_report(report_page([record]))
    return Kept(table=table, weights=written, summary=summary)
