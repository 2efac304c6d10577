"""Curves over epochs and over time: loss, accuracy, throughput against the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from raylab.report.figure import Figure, axis, plot, safe
from raylab.report.palette import LIGHT, run_dash, run_tone
from raylab.report.run_record import RunRecord, number

__all__ = ["learning_curves", "throughput"]

_MOST_POINTS = 2000
_LOG_FROM = 50.0
"""A loss whose largest value is this many times its smallest stands on a logarithmic axis."""

Row = Mapping[str, Any]
_Place = Callable[[RunRecord, Row], float | None]


def learning_curves(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield loss and accuracy, each by epoch and by time."""
    for name, what, columns, form in (
        ("loss", "Loss", ("loss", "test_loss"), ".4f"),
        ("accuracy", "Accuracy", ("accuracy", "test_accuracy"), ".2%"),
    ):
        for by, label, place, unit in _abscissas(runs):
            traces = [
                trace
                for column, tested in zip(columns, (False, True), strict=True)
                for trace in _lines(runs, column, place, tested=tested, form=form, unit=unit)
            ]
            if not traces:
                continue
            y = axis("loss") if name == "loss" else axis("accuracy (%)", tickformat=".0%")
            if name == "loss" and _spans_decades(runs, columns):
                y = axis("loss, logarithmic", type="log", dtick="D2", exponentformat="power")
            note = "Solid: training. Dashed: test."
            if not any(number(row.get(columns[1])) is not None for run in runs for row in run.rows):
                note = "Training."
            yield Figure(
                name=f"{name}-by-{by}",
                section="Learning",
                title=f"{what} by {by}",
                note=note,
                plot=plot(traces, axis(label, rangemode="tozero", tickformat=","), y),
            )


def throughput(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield samples per second of every row, and what was planned."""
    _, label, place, unit = _abscissas(runs)[0]
    traces = _lines(runs, "samples_per_s", place, tested=False, form=",.1f", unit=unit)
    if not traces:
        return
    planned = [(i, run, run.predicted_samples_per_s()) for i, run in enumerate(runs)]
    for i, run, predicted in planned:
        if predicted is None:
            continue
        xs = [x for row in run.rows if (x := place(run, row)) is not None]
        traces.append(
            go.Scatter(
                x=[0, max(xs, default=1.0)],
                y=[predicted, predicted],
                name=f"{safe(run.name)}, plan",
                mode="lines",
                line={"color": LIGHT[run_tone(i)], "dash": "dot", "width": 2},
                hovertemplate=f"<b>{safe(run.name)}</b>, plan<br>%{{y:,.1f}} samples/s"
                "<extra></extra>",
                meta={"run": i, "tone": run_tone(i)},
            )
        )
    note = "Without the time of tests."
    if any(predicted is not None for _, _, predicted in planned):
        note += " Dotted: the plan, what the slowest stage allows."
    yield Figure(
        name="throughput",
        section="Speed",
        title="Samples per second, row by row",
        note=note,
        plot=plot(
            traces,
            axis(label, rangemode="tozero", tickformat=","),
            axis("samples/s", rangemode="tozero", tickformat=","),
        ),
    )


def _abscissas(runs: Sequence[RunRecord]) -> list[tuple[str, str, _Place, str]]:
    """Return (name, title of the axis, where a row stands, format of the hover text)."""
    longest = max((number(run.rows[-1].get("time_s")) or 0.0 for run in runs), default=0.0)
    unit, seconds = "s", 1.0
    if longest > 7200:
        unit, seconds = "h", 3600.0
    elif longest > 300:
        unit, seconds = "min", 60.0
    per_epoch = {id(run): _steps_per_epoch(run) for run in runs}

    def epoch(run: RunRecord, row: Row) -> float | None:
        return float(row["step"]) / per_epoch[id(run)]

    def time(_: RunRecord, row: Row) -> float | None:
        value = number(row.get("time_s"))
        return None if value is None else value / seconds

    return [
        ("epoch", "epoch", epoch, "epoch %{x:,.2f}"),
        ("time", f"time ({unit})", time, f"%{{x:,.1f}} {unit}"),
    ]


def _steps_per_epoch(run: RunRecord) -> float:
    ends = [(row["step"], row["epoch"]) for row in run.rows if row.get("epoch")]
    steps, epochs = ends[-1] if ends else (run.rows[-1]["step"], 1)
    return max(float(steps) / epochs, 1e-9)


def _lines(
    runs: Sequence[RunRecord], column: str, place: _Place, *, tested: bool, form: str, unit: str
) -> list[go.Scatter]:
    traces = []
    what = column.replace("_", " ").replace("samples per s", "samples/s")
    for i, run in enumerate(runs):
        # A value that is not finite is a gap: the curve shows where it stopped being a number.
        points = [(place(run, row), number(row.get(column))) for row in run.rows if column in row]
        if tested:
            points = [(x, y) for x, y in points if y is not None]
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


def _spans_decades(runs: Sequence[RunRecord], columns: Sequence[str]) -> bool:
    values = [number(row.get(column)) for run in runs for row in run.rows for column in columns]
    found = [value for value in values if value is not None]
    return bool(found) and min(found) > 0 and max(found) > _LOG_FROM * min(found)
