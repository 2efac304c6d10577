"""The table at the end of runs that differ in the number of workers."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from raylab.report.certificates import level_of_all, time_to
from raylab.report.run_record import RunRecord

__all__ = ["workers_table"]


def workers_table(title: str, runs: Sequence[RunRecord]) -> Table:
    """Return a row per run; the speed-up is of the time to a certificate that all runs reach.

    Args:
        title: of the table.
        runs: of parameter servers under virtual time, in the order of their rows; the first is
            what the others are measured against.
    """
    column, level = level_of_all(runs)
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.caption = (
        f"Time is virtual. Speed-up: of the time to a {column.replace('_', ' ')} of {level:.1e}, "
        "which all reach."
    )
    table.caption_justify = "left"
    for name in ("workers", "ended by", "epochs", "messages", "staleness", "virtual s", "speed-up"):
        table.add_column(name, justify="left" if name == "ended by" else "right")
    first: float | None = None
    for run in runs:
        found, took = run.result, time_to(run, column, level)
        first = first or (took * run.config["workers"] if took else None)
        table.add_row(
            str(run.config["workers"]),
            str(found["ended_by"]),
            format(found["epochs"], ".1f"),
            format(found["messages"], ","),
            format(found["staleness_mean"], ".2f"),
            format(found["time_s"], ".4g"),
            format(first / took, ".2f") if took and first else "—",
        )
    return table
