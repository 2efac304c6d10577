"""A search as its page sees it: Optuna's trials, and what was made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from raylab.report.run_record import number

__all__ = ["Goal", "TuningRecord", "spans_decades", "worded"]

_LOG_FROM = 50.0
"""Values of which the largest is this many times the smallest stand on a logarithmic axis."""
_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "ended early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_ENDED = {"diverged": "diverged", "budget": "out of time"}


@dataclass(frozen=True, slots=True)
class Goal:
    """An objective.

    Args:
        name: of it, test_loss say.
        mode: which way is better.
    """

    name: str
    mode: Literal["min", "max"]

    @property
    def sign(self) -> int:
        """What makes less of it better, by multiplication."""
        return 1 if self.mode == "min" else -1

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        return "lower is better" if self.mode == "min" else "higher is better"


@dataclass(frozen=True, kw_only=True)
class TuningRecord:
    """What a search has found.

    Args:
        name: of the search, foreign text.
        config: of the search, as its config.yaml has it.
        goals: the objectives, the first one leads.
        trials: of the study, in order; of one that failed or is not over the values may be missing.
        summary: the content of result.json.
        best: best.yaml; None: no trial has finished.
        reported: numbers of the trials whose folder has a page of its own.
    """

    name: str
    config: Mapping[str, Any]
    goals: Sequence[Goal]
    trials: Sequence[FrozenTrial]
    summary: Mapping[str, Any]
    best: str | None = None
    reported: Collection[int] = ()

    @property
    def keys(self) -> list[str]:
        """The keys that were searched over, in the order of the space, if anything was chosen."""
        chosen = {key for trial in self.trials for key in trial.params}
        space = [key for key in self.config.get("space", {}) if key in chosen]
        return [*space, *sorted(chosen - set(space))]

    @property
    def front(self) -> list[int]:
        """Numbers of the best trials: one, or where there are several objectives, the front."""
        return [int(each["number"]) for each in self.summary.get("front") or ()]

    def of(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states."""
        return [trial for trial in self.trials if trial.state in states]

    def value(self, trial: FrozenTrial, goal: Goal) -> float | None:
        """Return a trial's value of an objective; None: it has none that is finite."""
        return number(trial.values[self.goals.index(goal)]) if trial.values else None

    def categories(self, key: str) -> list[Any] | None:
        """Return the choices of a key, as the study keeps them; None: it is a number."""
        found = next(each for trial in self.trials if (each := trial.distributions.get(key)))
        return list(found.choices) if isinstance(found, CategoricalDistribution) else None

    def logarithmic(self, key: str) -> bool:
        """Tell whether magnitudes of a key were searched over."""
        kinds = [each for trial in self.trials if (each := trial.distributions.get(key))]
        return any(getattr(each, "log", False) for each in kinds)

    def state(self, trial: FrozenTrial) -> str:
        """Return how a trial has ended, in a word or two."""
        ended = _ENDED.get(trial.user_attrs.get("ended", ""))
        return ended if ended and trial.state == TrialState.PRUNED else _STATES[trial.state]


def spans_decades(values: Sequence[float]) -> bool:
    """Tell whether values belong on a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) > _LOG_FROM * min(values)


def worded(value: Any) -> str:
    """Return a value of a key or an objective for a person."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
