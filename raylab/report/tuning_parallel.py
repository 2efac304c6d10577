"""Trials as lines across all keys and objectives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from raylab.report.figure import Figure, axis, plot, safe
from raylab.report.palette import LIGHT, RANKS
from raylab.report.tuning_points import described
from raylab.report.tuning_record import Goal, TuningRecord, spans_decades, worded

__all__ = ["parallel"]

_MOST_LINES = 200
_ABSENT = -0.16
"""Where a line passes the axis of a key that its trial does not have; values are from 0 to 1."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """An axis that lines pass.

    Args:
        title: of it.
        places: of the trials, from 0 to 1.
        labels: (place, text) along it.
    """

    title: str
    places: Sequence[float]
    labels: Sequence[tuple[float, str]]


def parallel(record: TuningRecord) -> Iterator[Figure]:
    """Yield every finished trial as a line across its keys and objectives, darker the better."""
    lead = record.goals[0]
    ranked = [
        trial
        for trial in record.of(TrialState.COMPLETE)
        if all(record.value(trial, goal) is not None for goal in record.goals)
    ]
    ranked.sort(key=lambda trial: lead.sign * (record.value(trial, lead) or 0.0))
    if len(ranked) < 2 or not record.keys:
        return
    ranked, left = ranked[:_MOST_LINES], max(0, len(ranked) - _MOST_LINES)
    scales = [
        *(_of_key(record, key, ranked) for key in record.keys),
        *(_of_goal(record, goal, ranked) for goal in record.goals),
    ]
    tones = [RANKS[rank * len(RANKS) // len(ranked)] for rank in range(len(ranked))]
    traces = [
        *(_rail(k) for k in range(len(scales))),
        # The best last, so that they lie on top.
        *(_line(record, i, ranked[i], scales, tones[i]) for i in reversed(range(len(ranked)))),
    ]
    marks = [mark for k, scale in enumerate(scales) for mark in _marks(k, scale)]
    note = f"A line is a trial that finished: the paler, the worse its {lead.name}; orange: "
    note += "the best." if len(record.goals) == 1 else "the front."
    least = min(0.0, *(min(scale.places) for scale in scales))
    if least < 0:
        note += " Below an axis: the trial does not have that key."
    if left:
        note += f" The best {_MOST_LINES}; {left} more are left out."
    yield Figure(
        name="parallel",
        section="Search",
        title="Trials across keys and objectives",
        note=note,
        plot=plot(
            traces,
            axis(
                "",
                tickvals=list(range(len(scales))),
                ticktext=[safe(scale.title) for scale in scales],
                range=[-0.35, len(scales) - 0.65],
                showgrid=False,
                showline=False,
                ticks="",
                fixedrange=True,
                side="top",
            ),
            axis("", visible=False, range=[least - 0.08, 1.1], fixedrange=True),
            height=400,
            margin={"l": 20, "r": 20, "t": 12, "b": 12},
            annotations=marks,
            hovermode="closest",
        ),
        wide=True,
    )


def _of_key(record: TuningRecord, key: str, trials: Sequence[FrozenTrial]) -> _Scale:
    choices = record.categories(key)
    if choices is not None:
        among = {repr(choice): k / max(1, len(choices) - 1) for k, choice in enumerate(choices)}
        places = [
            among[repr(trial.params[key])] if key in trial.params else _ABSENT for trial in trials
        ]
        return _Scale(key, places, [(among[repr(each)], worded(each)) for each in choices])
    return _numbers(
        key,
        [trial.params.get(key) for trial in trials],
        logarithmic=record.logarithmic(key),
    )


def _of_goal(record: TuningRecord, goal: Goal, trials: Sequence[FrozenTrial]) -> _Scale:
    values = [record.value(trial, goal) for trial in trials]
    known = [value for value in values if value is not None]
    return _numbers(goal.name, values, logarithmic=spans_decades(known))


def _numbers(title: str, values: Sequence[float | None], *, logarithmic: bool) -> _Scale:
    """Return the scale from the least to the largest of the values."""
    known = [value for value in values if value is not None]
    if not known:
        return _Scale(title, [_ABSENT] * len(values), [])
    along = math.log if logarithmic else float
    low, high = along(min(known)), along(max(known))

    def place(value: float) -> float:
        return (along(value) - low) / (high - low) if high > low else 0.5

    ends = dict.fromkeys((min(known), max(known)))
    return _Scale(
        title,
        [_ABSENT if value is None else place(value) for value in values],
        [(place(end), worded(end)) for end in ends],
    )


def _rail(k: int) -> go.Scatter:
    return go.Scatter(
        x=[k, k],
        y=[0, 1],
        mode="lines",
        line={"color": LIGHT["axis"], "width": 1},
        hoverinfo="skip",
        showlegend=False,
        meta={"tone": "axis"},
    )


def _line(
    record: TuningRecord, i: int, trial: FrozenTrial, scales: Sequence[_Scale], tone: str
) -> go.Scatter:
    best = trial.number in record.front
    tone = "run1" if best else tone
    values = "<br>".join(
        f"{safe(goal.name)} {worded(record.value(trial, goal))}" for goal in record.goals
    )
    return go.Scatter(
        x=list(range(len(scales))),
        y=[scale.places[i] for scale in scales],
        name=f"trial {trial.number}",
        mode="lines+markers",
        line={"color": LIGHT[tone], "width": 3 if best else 1.5},
        marker={"color": LIGHT[tone], "size": 5},
        hovertemplate=f"<b>trial {trial.number}</b><br>{values}<br>{described(trial)}"
        "<extra></extra>",
        showlegend=False,
        meta={"tone": tone},
    )


def _marks(k: int, scale: _Scale) -> Iterator[dict[str, Any]]:
    for place, text in scale.labels:
        # Beyond the ends, where no line passes; between them, beside the axis.
        beyond = {0.0: {"yshift": -10}, 1.0: {"yshift": 10}}
        yield {
            "x": k,
            "y": place,
            "text": safe(text),
            "showarrow": False,
            "font": {"size": 11},
            **beyond.get(place, {"xanchor": "left", "xshift": 6}),
        }
