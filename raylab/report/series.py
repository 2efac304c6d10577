"""What curves are made of: places on the axes of epochs and time, and a line a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from raylab.report.figure import safe
from raylab.report.palette import LIGHT, run_dash, run_tone
from raylab.report.run_record import RunRecord, number

__all__ = ["Place", "Row", "abscissas", "lines"]

_MOST_POINTS = 2000

Row = Mapping[str, Any]
Place = Callable[[RunRecord, Row], float | None]


def abscissas(runs: Sequence[RunRecord]) -> list[tuple[str, str, Place, str]]:
    """Return what curves are drawn over: epochs, then time.

    Returns:
        (name, title of the axis, where a row stands, format of the hover text) of each.
    """
    longest = max((number(run.rows[-1].get("time_s")) or 0.0 for run in runs), default=0.0)
    unit, seconds = "s", 1.0
    if longest > 7200:
        unit, seconds = "h", 3600.0
    elif longest > 300:
        unit, seconds = "min", 60.0
    per_epoch = {id(run): _steps_per_epoch(run) for run in runs}

    def epoch(run: RunRecord, row: Row) -> float | None:
        if "samples_seen" in row:  # a server's steps are messages, which differ in samples
            return number(row.get("epoch"))
        return float(row["step"]) / per_epoch[id(run)]

    def time(_: RunRecord, row: Row) -> float | None:
        value = number(row.get("time_s"))
        return None if value is None else value / seconds

    return [
        ("epoch", "epoch", epoch, "epoch %{x:,.2f}"),
        ("time", f"{_clock(runs)} ({unit})", time, f"%{{x:,.1f}} {unit}"),
    ]


def _clock(runs: Sequence[RunRecord]) -> str:
    """Say what time is told by, as a simulated run is told by no clock of this world."""
    virtual = [run.config.get("clock") == "virtual" for run in runs]
    if all(virtual):
        return "virtual time"
    return "time, virtual of what is simulated" if any(virtual) else "time"


def _steps_per_epoch(run: RunRecord) -> float:
    ends = [(row["step"], row["epoch"]) for row in run.rows if row.get("epoch")]
    steps, epochs = ends[-1] if ends else (run.rows[-1]["step"], 1)
    return max(float(steps) / epochs, 1e-9)


def lines(
    runs: Sequence[RunRecord],
    column: str,
    place: Place,
    *,
    form: str,
    unit: str,
    tested: bool = False,
    positive: bool = False,
) -> list[go.Scatter]:
    """Return a line a run that has the column.

    Args:
        runs: all of them.
        column: of the rows.
        place: where a row stands, of `abscissas`.
        form: format of a value in the hover text.
        unit: format of a place in the hover text.
        tested: whether the column is of test data: dashed, without gaps.
        positive: leave out values that have no logarithm.
    """
    traces = []
    what = column.replace("_", " ").replace("samples per s", "samples/s")
    for i, run in enumerate(runs):
        # A value that is not finite is a gap: the curve shows where it stopped being a number.
        points = [(place(run, row), number(row.get(column))) for row in run.rows if column in row]
        if tested or positive:
            points = [(x, y) for x, y in points if y is not None and (y > 0 or not positive)]
        if not any(y is not None for _, y in points):
            continue
        points = points[:: max(1, len(points) // _MOST_POINTS)]
        traces.append(
            go.Scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                name=f"{safe(run.name)}, test" if tested else safe(run.name),
                mode="lines+markers" if len(points) <= 60 else "lines",
                marker={
                    "color": LIGHT[run_tone(i)],
                    "size": 6,
                    "symbol": "circle-open" if tested else "circle",
                },
                line={
                    "color": LIGHT[run_tone(i)],
                    "width": 2,
                    "dash": "dash" if tested else run_dash(i),
                },
                hovertemplate=f"<b>{safe(run.name)}</b>, {unit}<br>{what} %{{y:{form}}}"
                "<extra></extra>",
                meta={"run": i, "tone": run_tone(i)},
            )
        )
    return traces
