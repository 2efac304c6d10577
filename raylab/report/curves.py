"""Curves over epochs and over time: loss, accuracy, throughput against the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from raylab.report.averaging import without_waiting
from raylab.report.figure import Figure, axis, plot, safe
from raylab.report.palette import LIGHT, run_tone
from raylab.report.run_record import RunRecord, number
from raylab.report.series import abscissas, lines

__all__ = ["learning_curves", "throughput"]

_LOG_FROM = 50.0
"""A loss whose largest value is this many times its smallest stands on a logarithmic axis."""


def learning_curves(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield loss, accuracy and return, each by epoch and by time."""
    for name, what, columns, form in (
        ("return", "Mean return", ("mean_return", "greedy_return"), ".1f"),
        ("loss", "Loss", ("loss", "test_loss"), ".4f"),
        ("accuracy", "Accuracy", ("accuracy", "test_accuracy"), ".2%"),
    ):
        for by, label, place, unit in abscissas(runs):
            traces = [
                trace
                for column, tested in zip(columns, (False, True), strict=True)
                for trace in lines(runs, column, place, tested=tested, form=form, unit=unit)
            ]
            if not traces:
                continue
            y = axis("accuracy (%)", tickformat=".0%") if name == "accuracy" else axis(name)
            if name == "loss" and _spans_decades(runs, columns):
                y = axis("loss, logarithmic", type="log", dtick="D2", exponentformat="power")
            note = "Solid: training. Dashed: test."
            if name == "return":
                note = "Solid: the last 100 episodes of training. Dashed: the greedy policy."
            elif not any(
                number(row.get(columns[1])) is not None for run in runs for row in run.rows
            ):
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
    _, label, place, unit = abscissas(runs)[0]
    traces = lines(runs, "samples_per_s", place, form=",.1f", unit=unit)
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
        whose = (
            "steps, and averages beyond their delay"
            if all(r.averages for r in runs)
            else ("what the slowest stage allows")
        )
        note += f" Dotted: the plan, {whose}."
    if waits := without_waiting(runs, place):
        traces += waits
        note += " Dashed: had no worker waited for the network."
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


def _spans_decades(runs: Sequence[RunRecord], columns: Sequence[str]) -> bool:
    values = [number(row.get(column)) for run in runs for row in run.rows for column in columns]
    found = [value for value in values if value is not None]
    return bool(found) and min(found) > 0 and max(found) > _LOG_FROM * min(found)
