"""What goes on in Ray Tune, shown to a person and written into the study."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from optuna.trial import TrialState
from ray.exceptions import RayTaskError
from ray.tune import Callback

from raylab.config.objectives import Objective
from raylab.drivers.tuning.best import front
from raylab.drivers.tuning.study import TuningStudy
from raylab.report import TrialLine, TuningView

__all__ = ["Watch"]

_SPENT_S = 5.0
"""Between two notes of how long it has been searched."""
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Watch(Callback):
    """Hears of every trial, from Ray Tune.

    Args:
        study: of the search.
        objectives: of the search.
        view: what is shown.
    """

    def __init__(
        self, study: TuningStudy, objectives: Sequence[Objective], view: TuningView
    ) -> None:
        self._study = study
        self._objectives = objectives
        self._view = view
        self._lines: dict[int, TrialLine] = {}
        self._before_s = study.spent_s
        self._began = self._noted = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles it to restore a search, which the study does here."""
        return {}

    def on_trial_start(self, *_: Any, **info: Any) -> None:
        """Show it."""
        self._line(info["trial"]).state = "running"

    def on_trial_result(self, *_: Any, **info: Any) -> None:
        """Show its report."""
        line, result = self._line(info["trial"]), info["result"]
        self._tell_losses(line.number, str(result.get("lost") or "").splitlines())
        line.epoch = result.get("epoch", line.epoch)
        line.values = {each.name: result.get(each.name) for each in self._objectives}

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        """Show how it has ended."""
        self._ended(info["trial"])

    def on_trial_recover(self, *_: Any, **info: Any) -> None:
        """Note that it has failed, and goes on."""
        line, error = self._line(info["trial"]), _error(info["trial"])
        failures = self._study.trial(line.number).user_attrs.get("failures", 0) + 1
        self._study.note(line.number, {"failures": failures, "error": error})
        line.state = "waiting"
        self._view.say(f"trial {line.number} goes on after: {error}")

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        """Tell the study that it has failed for good."""
        number, error = self._line(info["trial"]).number, _error(info["trial"])
        self._study.end(number, TrialState.FAIL, notes={"ended": "failed", "error": error})
        self._view.say(f"trial {number} failed: {error}")
        self._ended(info["trial"])

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note how long it has been searched."""
        if time.monotonic() - self._noted > _SPENT_S:
            self.note_time()

    def note_time(self) -> None:
        """Write down how long it has been searched."""
        self._noted = time.monotonic()
        self._study.spent_s = self._before_s + self._noted - self._began

    def _tell_losses(self, number: int, lost: Sequence[str]) -> None:
        """Say and note what the run of a trial has lost, which goes on by itself."""
        if not lost:
            return
        for each in lost:
            self._view.say(f"trial {number}: {each}")
        trial = self._study.trial(number)
        if not trial.state.is_finished():
            before = trial.user_attrs.get("losses", [])
            self._study.note(number, {"losses": [*before, *lost]})

    def _line(self, trial: Any) -> TrialLine:
        number = trial.config["number"]
        if number not in self._lines:
            self._lines[number] = TrialLine(number=number, params=trial.config["params"])
            self._view.show(self._lines[number])
        return self._lines[number]

    def _ended(self, trial: Any) -> None:
        line = self._line(trial)
        line.state = self._study.trial(line.number).user_attrs.get("ended", "ended")
        best = front(self._study, self._objectives)
        words = "none yet"
        if best:
            values = ", ".join(f"{name} {value:.4g}" for name, value in best[0]["values"].items())
            words = f"trial {best[0]['number']}, {values}"
        self._view.ended(line, len(self._study.trials(*_FINISHED)), words)


def _error(trial: Any) -> str:
    """Return why a trial of Tune's has failed, in a line or two."""
    error: Any = None
    with contextlib.suppress(OSError, TypeError):
        # This process has written it a moment ago.
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    if isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    text = str(error or "its process ended").strip()
    return text if len(text) <= 1000 else f"{text[:1000]}..."
