"""The page of a search: report.html in its folder, at its end or of what there is so far."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import TrialState

from raylab.config.tuning import TuningConfig, tuning_config
from raylab.drivers.tuning.best import best_yaml, summary
from raylab.drivers.tuning.study import DATABASE, TuningStudy, trial_folder
from raylab.records import RunFolder, Storage
from raylab.report.tuning_record import Goal, TuningRecord

__all__ = ["holds_search", "read_tuning", "tuning_record"]


def holds_search(path: str) -> bool:
    """Tell whether a path is the folder of a search."""
    local = Storage.at(path).local
    return local is not None and (local / DATABASE).is_file()


def read_tuning(path: str) -> TuningRecord:
    """Read a search, also one that goes on.

    Args:
        path: of its folder.

    Raises:
        ConfigError: it holds none.
    """
    folder = RunFolder.existing(Storage.at(path))
    config = tuning_config(folder.read_config())
    return tuning_record(TuningStudy.open(folder.path), config, folder.path)


def tuning_record(study: TuningStudy, config: TuningConfig, folder: Path) -> TuningRecord:
    """Return what a page shows of a search.

    Args:
        study: of the search.
        config: of the search.
        folder: of the search.
    """
    trials = study.trials()
    return TuningRecord(
        name=folder.name,
        config=config.plain(),
        goals=[Goal(each.name, each.mode) for each in config.objectives],
        trials=[trial for trial in trials if trial.state != TrialState.WAITING],
        summary=summary(study, config),
        best=best_yaml(study, config, folder.name),
        reported=frozenset(
            trial.number
            for trial in trials
            if (folder / trial_folder(trial.number) / "report.html").is_file()
        ),
    )
