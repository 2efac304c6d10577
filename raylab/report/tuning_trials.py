"""The trials themselves: their learning curves, and the seconds that were no training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from raylab.report.figure import LEGEND_ABOVE, Figure, axis, plot, safe
from raylab.report.palette import LIGHT
from raylab.report.run_record import number
from raylab.report.tuning_points import goal_axis
from raylab.report.tuning_record import TuningRecord

__all__ = ["curves", "seconds"]

_UNITS = {"epoch": "epoch", "step": "step", "time_s": "time of the trial (s)"}


def curves(record: TuningRecord) -> Iterator[Figure]:
    """Yield the reports of all trials, those that ended early lighter than the others."""
    lines = [(trial, _reports(trial)) for trial in record.trials]
    lines = [(trial, points) for trial, points in lines if points]
    if not lines:
        return
    unit = record.config.get("scheduler", {}).get("unit", "")
    placed = all(trial.user_attrs.get("at") for trial, _ in lines)
    goal = record.goals[0]
    traces = []
    shown: set[str] = set()
    # The best last, so that it lies on top.
    lines.sort(key=lambda each: _KINDS.index(_kind(record, each[0])))
    for trial, points in lines:
        kind = _kind(record, trial)
        tone, width = _LOOKS[kind]
        at = trial.user_attrs.get("at") or []
        traces.append(
            go.Scatter(
                x=[at[r - 1] if placed and r <= len(at) else r for r, _ in points],
                y=[value for _, value in points],
                name=kind,
                legendgroup=kind,
                showlegend=kind not in shown,
                mode="lines+markers",
                line={"color": LIGHT[tone], "width": width},
                marker={"color": LIGHT[tone], "size": 4 + width},
                hovertemplate=f"<b>trial {trial.number}</b>, {record.state(trial)}<br>"
                f"{safe(goal.name)} %{{y:.4g}}<extra></extra>",
                meta={"tone": tone},
            )
        )
        shown.add(kind)
    yield Figure(
        name="curves",
        section="Trials",
        title=f"{goal.name}, report by report",
        note="A line is a trial; the lighter ones were ended early.",
        plot=plot(
            traces,
            axis(
                _UNITS.get(unit, "report") if placed else "report",
                rangemode="tozero",
                tickformat=",",
            ),
            goal_axis(goal, [value for _, points in lines for _, value in points]),
            height=400,
            **LEGEND_ABOVE,
        ),
        wide=True,
    )


def seconds(record: TuningRecord) -> Iterator[Figure]:
    """Yield how long each trial trained, and how long it did not yet."""
    known = [
        trial for trial in record.trials if number(trial.user_attrs.get("train_s")) is not None
    ]
    if not known:
        return
    share = record.summary.get("start_share")
    said = f"{share:.0%} of all their seconds." if share is not None else ""
    traces: list[Any] = [
        go.Bar(
            x=[trial.number for trial in known],
            y=[number(trial.user_attrs.get(note)) or 0.0 for trial in known],
            name=name,
            marker={"color": LIGHT[tone]},
            hovertemplate=f"<b>trial %{{x}}</b><br>{name}: %{{y:,.2f}} s<extra></extra>",
            meta={"tone": tone},
        )
        for note, name, tone in (
            ("train_s", "training and testing", "forward"),
            ("start_s", "start-up", "backward"),
        )
    ]
    yield Figure(
        name="seconds",
        section="Trials",
        title="Seconds of each trial",
        note=f"Start-up, which is a trial's process, its actors, its data and its files: {said}",
        plot=plot(
            traces,
            axis("trial", tickformat=",d", dtick=1 if len(known) <= 10 else None),
            axis("time (s)", rangemode="tozero", tickformat=","),
            barmode="stack",
            bargap=0.3,
            **LEGEND_ABOVE,
        ),
        wide=True,
    )


_KINDS = ("ended early", "running", "finished", "best")
_LOOKS = {
    "ended early": ("axis", 1.5),
    "running": ("run2", 1.5),
    "finished": ("run0", 1.5),
    "best": ("run1", 3),
}
"""Tone and width of a line."""


def _kind(record: TuningRecord, trial: FrozenTrial) -> str:
    if trial.number in record.front:
        return "best"
    if trial.state == TrialState.COMPLETE:
        return "finished"
    return "running" if trial.state == TrialState.RUNNING else "ended early"


def _reports(trial: FrozenTrial) -> list[tuple[int, float]]:
    reports = sorted(trial.intermediate_values.items())
    return [(report, value) for report, each in reports if (value := number(each)) is not None]
