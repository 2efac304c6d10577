"""The timeline of the stages as a Gantt chart: a row per stage, a bar per operation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from raylab.report.figure import LEGEND_ABOVE, Figure, axis, plot, safe
from raylab.report.palette import LIGHT
from raylab.report.run_record import RunRecord

__all__ = ["timelines"]

_KINDS = ("waiting", "forward", "backward", "update", "evaluate")
"""In the order of drawing."""
_MOST_BARS = 6000
"""A browser draws so many at ease; the first batches of a longer timeline are shown."""
_FIRST = 12
"""Batches that are seen before anybody zooms."""


def timelines(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield a chart per run that has a timeline."""
    for i, run in enumerate(runs):
        if any(span["kind"] != "waiting" for span in run.timeline):
            yield _timeline(i, run)


def _timeline(index: int, run: RunRecord) -> Figure:
    # Stages wait for the first batch while they still start: the chart begins with the first work.
    zero = min(span["start_s"] for span in run.timeline if span["kind"] != "waiting")
    spans = [
        {**span, "start_s": max(zero, span["start_s"])}
        for span in sorted(run.timeline, key=lambda span: span["start_s"])
        if span["end_s"] > zero
    ][:_MOST_BARS]
    stages = max(span["stage"] for span in spans) + 1
    first = min(span["batch"] for span in spans)
    batches = max(span["batch"] for span in spans) + 1 - first
    end = max(span["end_s"] for span in spans) - zero
    windows = [(f"All {batches:,} batches", 0.0, end * 1e3)]
    if batches > _FIRST:
        # A run that went on from a checkpoint may have no spans of its very first batches.
        seen = [
            s["end_s"] - zero
            for s in spans
            if s["batch"] < first + _FIRST and s["kind"] != "waiting"
        ]
        windows.insert(0, (f"First {_FIRST} batches", 0.0, max(seen) * 1e3))
    figure = plot(
        [
            _bars(kind, of_kind, zero)
            for kind in _KINDS
            if (of_kind := [span for span in spans if span["kind"] == kind])
        ],
        axis("time (ms)", tickformat=",", range=list(windows[0][1:])),
        axis(
            "",
            categoryorder="array",
            categoryarray=[f"stage {k}" for k in range(stages)],
            fixedrange=True,
            showgrid=False,
        ),
        height=150 + 44 * stages,
        barmode="overlay",
        bargap=0.2,
        dragmode="zoom",
        **LEGEND_ABOVE,
        uniformtext={"minsize": 9, "mode": "hide"},
    )
    return Figure(
        name="timeline-" + (re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-") or str(index)),
        section="Timeline",
        title=f"What every stage of {run.name} did when",
        note="Time since the first forward. Numbers are batches. Drag to zoom, double-click for "
        "everything. Gaps: reading data, sending, reports.",
        plot=figure,
        run=index,
        windows=windows,
        wide=True,
    )


def _bars(kind: str, spans: Sequence[Mapping[str, Any]], zero: float) -> go.Bar:
    waiting = kind == "waiting"
    return go.Bar(
        orientation="h",
        y=[f"stage {span['stage']}" for span in spans],
        base=[round(1e3 * (span["start_s"] - zero), 3) for span in spans],
        x=[round(1e3 * (span["end_s"] - span["start_s"]), 3) for span in spans],
        customdata=[span["batch"] for span in spans],
        name=kind,
        width=0.2 if waiting else 0.72,
        text=[""] * len(spans)
        if kind != "forward" and kind != "backward"
        else [str(span["batch"]) for span in spans],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"size": 11},
        marker={"color": LIGHT[kind], "line": {"width": 0}},
        hovertemplate=f"<b>{safe(kind)}</b>, batch %{{customdata:,}}<br>%{{y}}: %{{x:,.2f}} ms "
        "from %{base:,.2f} ms<extra></extra>",
        meta={"tone": kind},
    )
