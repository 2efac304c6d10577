"""A figure of the report: a plot with its heading, and the layout that all plots share."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from raylab.report.palette import LIGHT, run_tone
from raylab.report.run_record import RunRecord

__all__ = ["LEGEND_ABOVE", "Figure", "axis", "plot", "safe", "stage_bars"]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LEGEND_ABOVE: dict[str, Any] = {
    "showlegend": True,
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
}
"""Layout of a plot whose colours are kinds of things, and not runs."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot.

    Args:
        name: of its file and its element, from a-z, 0-9 and `-`.
        section: of the page that it stands in.
        title: what is seen.
        note: a sentence below the title.
        plot: plotly's figure, in the colours of a light page. A trace's `meta` has the `tone` of
            its colour and the index of its `run`, for the page to repaint and to hide.
        run: index of the run that the whole figure is about; None: of all.
        windows: (label, first, last) of ranges of x that buttons zoom to.
        wide: takes the whole width of the page.
    """

    name: str
    section: str
    title: str
    note: str
    plot: go.Figure
    run: int | None = None
    windows: Sequence[tuple[str, float, float]] = field(default_factory=tuple)
    wide: bool = False


def safe(text: Any) -> str:
    """Return foreign text for a label of plotly, which would take <b> or <a> for markup."""
    return html.escape(str(text), quote=False)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 13}},
        "gridcolor": LIGHT["grid"],
        "linecolor": LIGHT["axis"],
        "tickcolor": LIGHT["axis"],
        "zeroline": False,
        "automargin": True,
        **more,
    }


def plot(
    traces: Sequence[Any], x: dict[str, Any], y: dict[str, Any], *, height: int = 320, **more: Any
) -> go.Figure:
    """Return a plot in the report's layout."""
    return go.Figure(
        data=list(traces),
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 13, "color": LIGHT["text"]},
            "hoverlabel": {"font": {"family": FONT, "size": 13}, "namelength": -1},
            "showlegend": False,
            "separators": ".,",
            "xaxis": x,
            "yaxis": y,
            **more,
        },
    )


def stage_bars(
    runs: Sequence[RunRecord], values: Sequence[Sequence[float]], hover: str
) -> list[go.Bar]:
    """Return bars over the stages, one colour a run.

    Args:
        runs: all of them.
        values: of every run, one number a stage; empty: the run has none.
        hover: template of what follows run and stage, with `%{y}`.
    """
    return [
        go.Bar(
            x=[f"stage {k}" for k in range(len(of_run))],
            y=list(of_run),
            name=safe(run.name),
            marker={"color": LIGHT[run_tone(i)]},
            hovertemplate=f"<b>{safe(run.name)}</b>, %{{x}}<br>{hover}<extra></extra>",
            meta={"run": i, "tone": run_tone(i)},
        )
        for i, (run, of_run) in enumerate(zip(runs, values, strict=True))
        if of_run
    ]
