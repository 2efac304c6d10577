"""Ray Tune's schedulers for trials, with what they knew when a search was interrupted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from raylab.config import run_config
from raylab.config.tuning import TuningConfig
from raylab.drivers.commands import resolved
from raylab.errors import ConfigError

__all__ = ["remind", "scheduler_of"]

_SHORT = 1e-6
"""Share by which asha's last rung is above the end of a trial: nobody is ended where it ends."""


def scheduler_of(config: TuningConfig) -> TrialScheduler:
    """Return the scheduler.

    Raises:
        ConfigError: no trial would ever be ended early.
    """
    given = config.scheduler
    if given.name == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    objective = config.objectives[0]
    judge: dict[str, Any] = {
        "time_attr": given.unit,
        "metric": objective.name,
        "mode": objective.mode,
    }
    if given.name == "median":
        return MedianStoppingRule(
            **judge,
            grace_period=given.grace,
            min_samples_required=given.others,
            # A trial that has nobody to be compared with goes on: it is not paused for others.
            min_time_slice=float("inf"),  # type: ignore[arg-type]
        )
    most = given.most or _epochs(config)
    if not given.grace < most:
        raise ConfigError(
            f"asha's grace must be less than a whole trial, but got scheduler.grace="
            f"{given.grace:g} with {most:g} {given.unit}: train longer, or say scheduler.name=none"
        )
    return ASHAScheduler(
        **judge,
        max_t=most * (1 - _SHORT),  # type: ignore[arg-type]
        grace_period=given.grace,  # type: ignore[arg-type]
        reduction_factor=given.reduction,
        stop_last_trials=False,
    )


def _epochs(config: TuningConfig) -> float:
    for domain in config.space:
        if domain.key == "epochs":
            return float(max(domain.ends))
    return float(resolved(run_config(config.base)).epochs or 1)


def remind(scheduler: TrialScheduler, trials: Iterable[FrozenTrial], config: TuningConfig) -> None:
    """Tell a new scheduler what trials reported before it was there.

    Args:
        scheduler: of this search.
        trials: of its study, those that have reported.
        config: of the search.
    """
    objective, unit = config.objectives[0], config.scheduler.unit
    nobody: Any = SimpleNamespace(get_live_trials=list)
    for trial in trials:
        # What schedulers look at in a trial of Tune's.
        past: Any = _Past(f"past-{trial.number}")
        results = [{unit: at, objective.name: value} for at, value in _reports(trial)]
        if not results:
            continue
        scheduler.on_trial_add(nobody, past)
        for result in results:
            scheduler.on_trial_result(nobody, past, result)
        scheduler.on_trial_complete(nobody, past, results[-1])


class _Past:
    """A trial that was, for a scheduler."""

    status = "TERMINATED"

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def _reports(trial: FrozenTrial) -> Sequence[tuple[float, float]]:
    """Return (time, value) of a trial's reports, in the scheduler's unit."""
    times = dict(enumerate(trial.user_attrs.get("at", []), start=1))
    reports = sorted(trial.intermediate_values.items())
    return [(at, value) for report, value in reports if (at := times.get(report)) is not None]
