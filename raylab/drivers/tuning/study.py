"""The study of a tuning run: Optuna's database in its folder, the only memory that counts.

<storage>/<name>/study.db      SQLite, Optuna's own tables, one study, named as the run is; any tool
                               of Optuna's opens it
                 trials/7/     the run of trial 7, with the files of any run

Of a trial the study holds

    params               the keys of the space that were chosen, by name; a choice that is a list
                         stands as its JSON
    values               of the objectives, in order, when it has ended by itself, infinite where a
                         run has not come to its `until`; of one that was ended early the last one
                         that it reported
    intermediate values  by report, from 1; where there is one objective
    state                RUNNING    begun and not ended, also by a process that is no more
                         COMPLETE   ended by itself
                         PRUNED     ended early
                         FAIL       failed, again and again
                         WAITING    a point to start from that has not begun
    user attributes      see `TrialNotes`

and of itself, as user attributes, `config` (the tuning's, as config.yaml has it), `spent_s` (how
long it has searched, in all) and the names of the objectives where Optuna has them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raylab.drivers.tuning.patient_sqlite import LockWatch, connection_class
from raylab.errors import ConfigError

__all__ = ["DATABASE", "SPENT", "Ended", "TrialNotes", "TuningStudy", "trial_folder"]

DATABASE = "study.db"
SPENT = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
"""States of trials that a budget counts."""

Ended = Literal["finished", "scheduler", "budget", "diverged", "failed"]
"""By what a trial has ended: its run's own end; the scheduler; the time; a loss that became NaN; an
error."""


class TrialNotes(TypedDict, total=False):
    """The user attributes of a trial."""

    folder: str
    """Of its run, from the tuning's own: trials/7."""
    ended: Ended
    error: str
    """Why it has failed or diverged."""
    failures: int
    """Times that it has failed and was tried again."""
    losses: list[str]
    """Actors that its run has lost, and how it went on."""
    start_s: float
    """Seconds that were no training: its process, its actors, its data, its files."""
    train_s: float
    """Seconds of training and testing, as the run's rows count them."""
    epochs: float
    steps: int
    """Of the last report."""
    at: list[float | None]
    """Of every report, when it came, in the scheduler's unit: epochs, steps or seconds."""


def trial_folder(number: int) -> str:
    """Return where the run of a trial is, from the tuning's folder.

    >>> trial_folder(7)
    'trials/7'
    """
    return f"trials/{number}"


class TuningStudy:
    """A study, and what is written into it trial by trial. Made by `made` or `open`.

    Args:
        study: Optuna's.
        storage: that it is in.
        lock: knows of waiting for others who use the database, a dashboard say.
    """

    def __init__(self, study: optuna.Study, storage: RDBStorage, lock: LockWatch) -> None:
        self.optuna = study
        self.lock = lock
        self._storage = storage
        self._id = storage.get_study_id_from_name(study.study_name)

    @classmethod
    def made(
        cls,
        folder: Path,
        name: str,
        objectives: Sequence[tuple[str, StudyDirection]],
        config: Mapping[str, Any],
        say: Callable[[str], None] | None = None,
    ) -> TuningStudy:
        """Make the study of a tuning run, or go on making it, or leave it as it is.

        Args:
            folder: of the tuning.
            name: of the study.
            objectives: names and directions.
            config: of the tuning, JSON.
            say: takes a line for the user; None: standard error.

        Raises:
            ResourceError: others have the database locked for too long, here and later.
        """
        lock = LockWatch(folder / DATABASE, say)
        storage = _storage(folder, lock)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[direction for _, direction in objectives],
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([name for name, _ in objectives])
        study.set_user_attr("config", dict(config))
        return cls(study, storage, lock)

    @classmethod
    def open(cls, folder: Path) -> TuningStudy:
        """Open the study of a tuning run again.

        Raises:
            ConfigError: the folder has none.
        """
        if not (folder / DATABASE).is_file():
            raise ConfigError(
                f"a tuning's folder must hold {DATABASE}, but {folder} does not: check the path"
            )
        lock = LockWatch(folder / DATABASE)
        storage = _storage(folder, lock)
        names = [study.study_name for study in storage.get_all_studies()]
        if len(names) != 1:
            raise ConfigError(f"{folder / DATABASE} must hold one study, but it holds {len(names)}")
        study = optuna.load_study(
            study_name=names[0], storage=storage, pruner=optuna.pruners.NopPruner()
        )
        return cls(study, storage, lock)

    @property
    def spent_s(self) -> float:
        """How long it has been searched, in all, in seconds."""
        return float(self.optuna.user_attrs.get("spent_s", 0.0))

    @spent_s.setter
    def spent_s(self, seconds: float) -> None:
        self.optuna.set_user_attr("spent_s", seconds)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states, in order; none named: all."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial as it is now."""
        return self._storage.get_trial(self._trial_id(number))

    def adopt(self, number: int) -> optuna.Trial:
        """Return a running trial to go on with: what it has of parameters stays."""
        return optuna.Trial(self.optuna, self._trial_id(number))

    def note(self, number: int, notes: TrialNotes) -> None:
        """Write down user attributes of a trial that has not ended."""
        for key, value in notes.items():
            self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def report(self, number: int, report: int, value: float) -> None:
        """Write down the objective of a running trial; what was reported before stays."""
        if report not in self.trial(number).intermediate_values:
            self._storage.set_trial_intermediate_value(self._trial_id(number), report, value)

    def end(
        self,
        number: int,
        state: TrialState,
        values: Sequence[float] | None = None,
        notes: TrialNotes | None = None,
    ) -> None:
        """End a running trial; one that has ended stays as it is.

        Args:
            number: of the trial.
            state: COMPLETE, PRUNED or FAIL.
            values: of the objectives, where it is complete.
            notes: user attributes.
        """
        if self.trial(number).state.is_finished():
            return
        self.note(number, notes or {})
        self.optuna.tell(number, list(values) if values is not None else None, state=state)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _storage(folder: Path, lock: LockWatch) -> RDBStorage:
    given = {"timeout": lock.told_s, "factory": connection_class(lock)}
    return RDBStorage(f"sqlite:///{folder / DATABASE}", engine_kwargs={"connect_args": given})
