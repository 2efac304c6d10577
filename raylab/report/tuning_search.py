"""How a search went: its history, and what is traded for what."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
from optuna.trial import TrialState

from raylab.report.figure import LEGEND_ABOVE, Figure, axis, plot
from raylab.report.palette import LIGHT
from raylab.report.tuning_points import dots, figure_name, goal_axis
from raylab.report.tuning_record import Goal, TuningRecord

__all__ = ["front", "history"]

_DECIDED = (TrialState.COMPLETE, TrialState.PRUNED)


def history(record: TuningRecord) -> Iterator[Figure]:
    """Yield each objective, trial by trial, and the best so far."""
    for goal in record.goals:
        points = [
            (trial, value)
            for trial in record.of(*_DECIDED)
            if (value := record.value(trial, goal)) is not None
        ]
        if not points:
            continue
        finished = [(t.number, v) for t, v in points if t.state == TrialState.COMPLETE]
        bests = list(itertools.accumulate((v * goal.sign for _, v in finished), min))
        traces: list[Any] = []
        if finished:
            last = max(trial.number for trial, _ in points)
            traces.append(
                go.Scatter(
                    x=[*(n for n, _ in finished), last],
                    y=[v * goal.sign for v in (*bests, bests[-1])],
                    name="best so far",
                    mode="lines",
                    line={"color": LIGHT["run1"], "width": 2, "shape": "hv"},
                    hoverinfo="skip",
                    meta={"tone": "run1"},
                )
            )
        traces += dots(record, [(t, t.number, v) for t, v in points], goal)
        yield Figure(
            name=figure_name("history", goal.name),
            section="Search",
            title=f"{goal.name}, trial by trial",
            note=f"{goal.better.capitalize()}.{_left_out(record, goal)}",
            plot=plot(
                traces,
                axis("trial", tickformat=",d", dtick=1 if len(record.trials) <= 10 else None),
                goal_axis(goal, [value for _, value in points]),
                **LEGEND_ABOVE,
            ),
            wide=len(record.goals) == 1,
        )


def front(record: TuningRecord) -> Iterator[Figure]:
    """Yield two objectives against each other, of each pair."""
    for across, up in itertools.combinations(record.goals, 2):
        points = [
            (trial, x, y)
            for trial in record.of(TrialState.COMPLETE)
            if (x := record.value(trial, across)) is not None
            and (y := record.value(trial, up)) is not None
        ]
        if not points:
            continue
        edge = sorted((x, y) for trial, x, y in points if trial.number in record.front)
        traces: list[Any] = []
        if len(record.goals) == 2:
            traces.append(
                go.Scatter(
                    x=[x for x, _ in edge],
                    y=[y for _, y in edge],
                    name="edge of the front",
                    mode="lines",
                    # Between two trials of the front, nothing better than both was found.
                    line={
                        "color": LIGHT["run1"],
                        "width": 1.5,
                        "shape": "hv" if across.mode == "min" else "vh",
                    },
                    hoverinfo="skip",
                    showlegend=False,
                    meta={"tone": "run1"},
                )
            )
        traces += dots(record, points, up, across.name)
        yield Figure(
            name=figure_name("front", across.name, up.name),
            section="Search",
            title=f"{across.name} against {up.name}",
            note=f"{across.name}: {across.better}. {up.name}: {up.better}. No trial is better in "
            "every objective than one of the front.",
            plot=plot(
                traces,
                goal_axis(across, [x for _, x, _ in points]),
                goal_axis(up, [y for _, _, y in points]),
                height=400,
                **LEGEND_ABOVE,
            ),
            wide=True,
        )


def _left_out(record: TuningRecord, goal: Goal) -> str:
    """Say how many trials have no value that could be shown."""
    parts = []
    never = [
        trial
        for trial in record.of(TrialState.COMPLETE)
        if trial.values and record.value(trial, goal) is None
    ]
    failed = record.of(TrialState.FAIL)
    if never:
        parts.append(f"{len(never)} never came to it")
    if failed:
        parts.append(f"{len(failed)} failed")
    return f" Not shown: {', '.join(parts)}." if parts else ""
