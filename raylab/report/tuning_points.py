"""Trials as points of a plot, and the axes of objectives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from raylab.report.figure import axis, safe
from raylab.report.palette import LIGHT
from raylab.report.tuning_record import Goal, TuningRecord, spans_decades, worded

__all__ = ["described", "dots", "figure_name", "goal_axis", "log_axis"]

_PLAIN = 1e-4, 1e5
"""Numbers that are written out on a logarithmic axis; beyond, as powers."""


def dots(
    record: TuningRecord,
    points: Sequence[tuple[FrozenTrial, Any, float]],
    goal: Goal,
    across: str = "",
) -> list[go.Scatter]:
    """Return trials as points: those that ended early, those that finished, the best.

    Args:
        record: of the search.
        points: trials, where they are on x, and their values of `goal`.
        goal: on y.
        across: what is on x; "": nothing that need be said.
    """
    best = set(record.front)
    kinds = (
        ("ended early", "axis", "circle-open", 8,
         [p for p in points if p[0].state == TrialState.PRUNED]),
        ("finished", "run0", "circle", 8,
         [p for p in points if p[0].state == TrialState.COMPLETE and p[0].number not in best]),
        ("best" if len(record.goals) == 1 else "front", "run1", "diamond", 11,
         [p for p in points if p[0].number in best]),
    )  # fmt: skip
    return [
        go.Scatter(
            x=[place for _, place, _ in members],
            y=[value for _, _, value in members],
            customdata=[[trial.number, described(trial)] for trial, _, _ in members],
            name=name,
            mode="markers",
            marker={"color": LIGHT[tone], "size": size, "symbol": symbol, "line": {"width": 1.5}},
            hovertemplate="<b>trial %{customdata[0]}</b>, " + name + "<br>"
            + (f"{safe(across)} %{{x:.4g}}<br>" if across else "")
            + f"{safe(goal.name)} %{{y:.4g}}<br>%{{customdata[1]}}<extra></extra>",
            meta={"tone": tone},
        )
        for name, tone, symbol, size, members in kinds
        if members
    ]  # fmt: skip


def described(trial: FrozenTrial) -> str:
    """Return what was chosen for a trial, for a hover text."""
    return "<br>".join(f"{safe(key)} {safe(worded(v))}" for key, v in trial.params.items())


def goal_axis(goal: Goal, values: Sequence[float]) -> dict[str, Any]:
    """Return the axis of an objective."""
    if spans_decades(values):
        return log_axis(safe(goal.name), values)
    return axis(safe(goal.name), tickformat=".0%" if "accuracy" in goal.name else None)


def log_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis for values above 0."""
    low, high = min(values), max(values)
    return axis(
        f"{title}, logarithmic",
        type="log",
        # Below 2 decades, also 2 and 5 of each.
        dtick=1 if high > 100 * low else "D2",
        exponentformat="none" if low >= _PLAIN[0] and high < _PLAIN[1] else "power",
    )


def figure_name(*words: str) -> str:
    """Return the name of a figure's file and element, from words that may be foreign.

    >>> figure_name("history", "time_s_to_test_accuracy_0.9")
    'history-time-s-to-test-accuracy-0-9'
    """
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)
