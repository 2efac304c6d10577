"""What a search has found: its best trials, a file that `raylab train` takes, a summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from raylab.config.objectives import Objective
from raylab.config.tuning import TuningConfig
from raylab.drivers.tuning.space import point, run_keys
from raylab.drivers.tuning.study import TuningStudy

__all__ = ["best_yaml", "front", "summary"]

_STATES = {
    "complete": TrialState.COMPLETE,
    "ended early": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


def front(study: TuningStudy, objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """Return the trials that no other is better than in every objective, the best of the first
    objective first; of one objective the best trial. Only trials that have ended by themselves.

    Args:
        study: of the search.
        objectives: of the search.
    """
    if not study.trials(TrialState.COMPLETE):
        return []
    found = study.optuna.best_trials
    sign = 1 if objectives[0].mode == "min" else -1
    found.sort(key=lambda trial: (sign * (trial.values or [0.0])[0], trial.number))
    return [_shown(trial, objectives) for trial in found[: None if len(objectives) > 1 else 1]]


def _shown(trial: FrozenTrial, objectives: Sequence[Objective]) -> dict[str, Any]:
    names = [each.name for each in objectives]
    return {
        "number": trial.number,
        "params": dict(trial.params),
        "values": dict(zip(names, trial.values or [], strict=True)),
        "folder": trial.user_attrs.get("folder"),
    }


def best_yaml(study: TuningStudy, config: TuningConfig, name: str) -> str | None:
    """Return the best trial's keys as a file that `raylab train` takes; None: there is none.

    What the search has held out to choose by is trained with, too, and the test figures are those
    of the data's own test samples, by which nothing was chosen.

    Args:
        study: of the search.
        config: of the search.
        name: of the search.
    """
    found = front(study, config.objectives)
    if not found:
        return None
    best = found[0]
    values = ", ".join(f"{key} {value:g}" for key, value in best["values"].items())
    keys = run_keys(best["params"], config)
    keys.pop("validation", None)
    text: str = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
    return f"# trial {best['number']} of {name}: {values}\n{text}"


def summary(study: TuningStudy, config: TuningConfig) -> dict[str, Any]:
    """Return what result.json says of a search."""
    trials = study.trials()
    ended = [trial.user_attrs for trial in trials if trial.state.is_finished()]
    start_s = sum(each.get("start_s", 0.0) for each in ended)
    train_s = sum(each.get("train_s", 0.0) for each in ended)
    found = front(study, config.objectives)
    for each in found:
        each["params"] = point(each["params"], config)
    return {
        "kind": "tuning",
        "config": config.plain(),
        "trials": {
            name: sum(trial.state == state for trial in trials) for name, state in _STATES.items()
        },
        "best": found[0] if found else None,
        "front": found,
        "metrics": found[0]["values"] if found else None,
        "steps": sum(each.get("steps", 0) for each in ended),
        "start_s": start_s,
        "train_s": train_s,
        "start_share": start_s / (start_s + train_s) if start_s + train_s > 0 else None,
        "time_s": study.spent_s,
    }
