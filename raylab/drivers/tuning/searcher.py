"""Optuna through Ray Tune, with the study as the only memory.

```
        ┌─ adopted: RUNNING in the study, but its process is no more
suggest ┤
        └─ asked: the next point ──▶ can it be run? ──▶ the order of a trial
                        ▲                  │ no
                        └──── FAIL ◀───────┘
```
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raylab.config.tuning import TuningConfig
from raylab.drivers.tuning.samplers import sampler_of
from raylab.drivers.tuning.space import suggest
from raylab.drivers.tuning.study import SPENT, Ended, TrialNotes, TuningStudy, trial_folder
from raylab.drivers.tuning.trial import TrialOrder
from raylab.errors import InputError

__all__ = ["StudySearch"]


class StudySearch(OptunaSearch):
    """Asks the study for points and tells it what came of them, as it comes.

    Args:
        study: of the search.
        config: of the search.
        order: makes a trial's order of its number and point; it raises an InputError for a point
            that cannot be run.
        ends: when searching ends, of `time.monotonic`.
    """

    def __init__(
        self,
        study: TuningStudy,
        config: TuningConfig,
        order: Callable[[int, Mapping[str, Any]], TrialOrder],
        ends: float,
    ) -> None:
        self._study = study
        self._config = config
        self._order = order
        self._ends = ends
        self._left = [trial.number for trial in study.trials(TrialState.RUNNING)]
        self._at: dict[int, dict[int, float | None]] = {}
        one = len(config.objectives) == 1
        names: list[str] = [each.name for each in config.objectives]
        modes: list[str] = [each.mode for each in config.objectives]
        super().__init__(
            space=lambda trial: suggest(trial, config),
            metric=names[0] if one else names,
            mode=modes[0] if one else modes,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles it to restore a search, which the study does here."""
        return {}

    def _setup_study(self, mode: str | list[str]) -> None:  # noqa: ARG002 - Ray's
        self._ot_study: Any = self._study.optuna

    def suggest(self, trial_id: str) -> Any:
        """Return the order of the next trial, or that there is none."""
        while True:
            number = self._begin(trial_id)
            if number is None:
                return Searcher.FINISHED
            with warnings.catch_warnings():
                # It takes a disk's time: every choice is written down as it is made.
                warnings.filterwarnings("ignore", "Define-by-run function", UserWarning)
                labels = super().suggest(trial_id) or {}
            try:
                order = self._order(number, labels)
            except InputError as error:
                self.fail(number, str(error))
                del self._ot_trials[trial_id]
                continue
            self._study.note(number, {"folder": trial_folder(number)})
            return order

    def number_of(self, trial_id: str) -> int:
        """Return the number in the study of a trial of Tune's."""
        number: int = self._ot_trials[trial_id].number
        return number

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Write a report into the study; where there are several objectives, it takes none."""
        number, report = self.number_of(trial_id), int(result["training_iteration"])
        at = result.get(self._config.scheduler.unit)
        self._at.setdefault(number, {})[report] = at
        value = result.get(self._config.objectives[0].name)
        if len(self._config.objectives) == 1 and value is not None:
            self._study.report(number, report, value)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how a trial has ended. One that failed is told with its error, by `fail`;
        one that has reported nothing goes on when the search does.
        """
        if error or not result:
            return
        number = self.number_of(trial_id)
        if result["training_iteration"]:
            self.on_trial_result(trial_id, result)
        notes = self._notes(number, result)
        values = result.get("values")
        if notes["ended"] == "finished" and values is not None:
            self._study.end(number, TrialState.COMPLETE, values, notes)
        elif notes["ended"] == "finished":
            names = ", ".join(each.name for each in self._config.objectives)
            self.fail(
                number,
                f"a run must come to {names}, but no row of it has all of them: choose a figure "
                "that its rows have; there is an accuracy only of what is called right or wrong",
                notes,
            )
        else:
            self._study.end(number, TrialState.PRUNED, notes=notes)

    def fail(self, number: int, error: str, notes: TrialNotes | None = None) -> None:
        """Tell the study that a trial has failed for good."""
        self._study.end(
            number, TrialState.FAIL, notes={**(notes or {}), "ended": "failed", "error": error}
        )

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study knows all."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: the study knows all."""

    def _begin(self, trial_id: str) -> int | None:
        """Take up the next trial; return its number, None if the budget is spent."""
        study = self._study.optuna
        if self._left:
            number = self._left.pop(0)
            study.sampler = sampler_of(self._config.search, number)
            trial = self._study.adopt(number)
        else:
            begun = len(self._study.trials(*SPENT))
            trials = self._config.budget.trials
            if time.monotonic() > self._ends or (trials is not None and begun >= trials):
                return None
            study.sampler = sampler_of(self._config.search, begun)
            trial = study.ask()
        self._ot_trials[trial_id] = trial
        return int(trial.number)

    def _notes(self, number: int, result: Mapping[str, Any]) -> TrialNotes:
        early: Ended = "budget" if time.monotonic() > self._ends else "scheduler"
        at = self._at.pop(number, {})
        notes: TrialNotes = {
            "ended": result.get("ended") or early,
            "at": [at.get(report) for report in range(1, max(at, default=0) + 1)],
        }
        for name, column in (("start_s", "start_s"), ("train_s", "train_s"), ("epochs", "epoch")):
            if result.get(column) is not None:
                notes[name] = result[column]  # type: ignore[literal-required]
        if result.get("step") is not None:
            notes["steps"] = int(result["step"])
        if result.get("error"):
            notes["error"] = result["error"]
        return notes
