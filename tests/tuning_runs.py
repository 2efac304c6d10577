"""Searches made by hand, for tests of their page without Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from raylab.report.tuning_record import Goal, TuningRecord

__all__ = ["SPACE", "finished", "made_up_search", "pruned", "search_of", "trial_of"]

SPACE: Mapping[str, BaseDistribution] = {
    "lr": FloatDistribution(0.001, 1.0, log=True),
    "tau": IntDistribution(1, 16, log=True),
    "optimizer": CategoricalDistribution(["sgd", "lars"]),
    "momentum": FloatDistribution(0.0, 0.99),
}


def trial_of(
    state: TrialState, params: Mapping[str, Any], values: Sequence[float] | None, **notes: Any
) -> FrozenTrial:
    """Return a trial with a curve of three reports where it has one value."""
    curve = {}
    if values is not None and len(values) == 1:
        curve = {r: values[0] + (3 - r) for r in range(1, 4 if state == TrialState.COMPLETE else 2)}
    return create_trial(
        state=state,
        params=dict(params),
        distributions={key: SPACE[key] for key in params},
        values=values,
        intermediate_values=curve,
        user_attrs={"start_s": 1.0, "train_s": 4.0, "epochs": 3.0, "steps": 30, **notes},
    )


def finished(values: Sequence[float], **params: Any) -> FrozenTrial:
    """Return a trial that has come to its end."""
    return trial_of(TrialState.COMPLETE, params, values, ended="finished")


def pruned(value: float, **params: Any) -> FrozenTrial:
    """Return a trial that was ended early."""
    return trial_of(TrialState.PRUNED, params, [value], ended="scheduler")


def search_of(
    trials: Sequence[FrozenTrial],
    goals: Sequence[Goal] = (Goal("test_loss", "min"),),
    name: str = "first",
) -> TuningRecord:
    """Return a search with these trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["minimize" if goal.mode == "min" else "maximize" for goal in goals]
    )
    study.add_trials(trials)
    done = study.get_trials(states=[TrialState.COMPLETE])
    best = study.best_trials if done else []
    return TuningRecord(
        name=name,
        config={
            "train": {"method": "dasgd", "model": "mlp", "data": "digits"},
            "space": {"lr": {}, "tau": {}, "optimizer": {}, "momentum": {}},
            "search": {"algorithm": "tpe", "seed": 0},
            "scheduler": {"name": "asha", "unit": "epoch", "grace": 1.0},
        },
        goals=goals,
        trials=study.trials,
        summary={
            "front": [{"number": trial.number} for trial in best],
            "time_s": 60.0,
            "start_share": 0.2,
        },
        best=f"# trial {best[0].number}\nmethod: dasgd\n" if best else None,
    )


def made_up_search(name: str = "first") -> TuningRecord:
    """Return a search with trials of every kind: lr decides, and sgd alone has a momentum."""
    trials = []
    for n in range(12):
        lr = 10 ** (-3 + n / 4)
        keys: dict[str, Any] = {"lr": lr, "tau": 1 + n % 5, "optimizer": ("sgd", "lars")[n % 2]}
        if n % 2 == 0:
            keys["momentum"] = 0.9 - 0.05 * n
        loss = 0.1 + (math.log10(lr) + 1) ** 2
        trials.append(pruned(loss + 1, **keys) if n % 4 == 3 else finished([loss], **keys))
    failed = trial_of(TrialState.FAIL, {"lr": 0.5, "tau": 2, "optimizer": "lars"}, None,
                      ended="failed", error="a worker was lost <b>twice</b>")  # fmt: skip
    return search_of([*trials, failed], name=name)
