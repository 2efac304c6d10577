"""Which keys decide, and how: importances, and each key against each objective."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from raylab.report.figure import LEGEND_ABOVE, Figure, axis, plot, safe
from raylab.report.palette import LIGHT, run_tone
from raylab.report.tuning_points import dots, figure_name, goal_axis, log_axis
from raylab.report.tuning_record import Goal, TuningRecord, worded

__all__ = ["LEAST", "importances", "slices", "usable"]

LEAST = 4
"""Finished trials below which nothing is said of importances."""
_FEW = 20
"""Finished trials below which they are said to be uncertain."""
_TOP = 5
"""Trials among the best that the evaluator is to have, as its authors recommend."""
_TOP_SHARE = 0.1, 0.5
"""Share of the trials that count as the best: of many, and at most."""


def usable(record: TuningRecord, goal: Goal) -> list[FrozenTrial]:
    """Return the finished trials that have a value of an objective."""
    return [
        trial
        for trial in record.of(TrialState.COMPLETE)
        if record.value(trial, goal) is not None
    ]  # fmt: skip


def importances(record: TuningRecord) -> Iterator[Figure]:
    """Yield how much each key decides whether a trial is among the best."""
    found = [(goal, _importances(record, goal)) for goal in record.goals]
    found = [(goal, shares) for goal, shares in found if shares]
    if not found:
        return
    lead = found[0][1]
    keys = sorted(lead, key=lambda key: lead[key])
    trials = min(len(usable(record, goal)) for goal, _ in found)
    note = f"How much each key decides whether a trial is among the best, by PED-ANOVA on {trials} "
    note += "finished trials."
    if trials < _FEW:
        note += f" Fewer than {_FEW}: a hint, no more; which key comes first may be chance."
    yield Figure(
        name="importances",
        section="Keys",
        title="Importance of the keys",
        note=note,
        plot=plot(
            [
                go.Bar(
                    y=[safe(key) for key in keys],
                    x=[shares.get(key, 0.0) for key in keys],
                    orientation="h",
                    name=safe(goal.name),
                    marker={"color": LIGHT[run_tone(i)]},
                    hovertemplate=f"<b>%{{y}}</b> for {safe(goal.name)}: %{{x:.1%}}<extra></extra>",
                    meta={"tone": run_tone(i)},
                )
                for i, (goal, shares) in enumerate(found)
            ],
            axis("importance (%)", tickformat=".0%", rangemode="tozero"),
            axis(""),
            height=max(320, 120 + 30 * len(keys) * len(found)),
            barmode="group",
            bargap=0.35,
            **(LEGEND_ABOVE if len(found) > 1 else {}),
        ),
    )


def slices(record: TuningRecord) -> Iterator[Figure]:
    """Yield each key against each objective."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    for goal in record.goals:
        for key in record.keys:
            having = [trial for trial in record.of(*states) if key in trial.params]
            choices = record.categories(key)
            points = [
                (
                    trial,
                    trial.params[key] if choices is None else safe(worded(trial.params[key])),
                    value,
                )
                for trial in having
                if (value := record.value(trial, goal)) is not None
            ]
            if not points:
                continue
            note = ""
            if len(having) < len(record.of(*states)):
                note = f"{len(having)} of {len(record.of(*states))} trials have this key."
            yield Figure(
                name=figure_name("slice", key, goal.name),
                section="Keys",
                title=f"{key} and {goal.name}",
                note=note,
                plot=plot(
                    dots(record, points, goal, key),
                    _key_axis(record, key, choices),
                    goal_axis(goal, [value for _, _, value in points]),
                    **LEGEND_ABOVE,
                ),
            )


def _importances(record: TuningRecord, goal: Goal) -> dict[str, float]:
    trials = usable(record, goal)
    if len(trials) < LEAST:
        return {}
    low, high = _TOP_SHARE
    study = _study(record, trials)
    with warnings.catch_warnings():
        # Less is better: that is what it would warn of.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", ExperimentalWarning)
        return get_param_importances(
            study,
            evaluator=PedAnovaImportanceEvaluator(
                target_quantile=max(low, min(high, _TOP / len(trials)))
            ),
            target=lambda trial: goal.sign * (record.value(trial, goal) or 0.0),
        )


def _study(record: TuningRecord, trials: list[FrozenTrial]) -> optuna.Study:
    """Return a study in memory of these trials."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            directions=["minimize" if goal.mode == "min" else "maximize" for goal in record.goals]
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(trials)
    return study


def _key_axis(record: TuningRecord, key: str, choices: list[Any] | None) -> dict[str, Any]:
    if choices is not None:
        words = [safe(worded(choice)) for choice in choices]
        return axis(
            safe(key),
            type="category",
            categoryorder="array",
            categoryarray=words,
            range=[-0.5, len(words) - 0.5],
        )
    values = [trial.params[key] for trial in record.trials if key in trial.params]
    if record.logarithmic(key):
        return log_axis(safe(key), values)
    if all(isinstance(value, int) for value in values):
        return axis(safe(key), tickformat=",d", dtick=max(1, (max(values) - min(values)) // 8))
    return axis(safe(key))
