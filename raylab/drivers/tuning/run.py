"""One search, carried out by Ray Tune to the end of its budget or until it is interrupted."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import optuna
import ray
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray import tune as ray_tune

from raylab.config.tuning import TuningConfig
from raylab.drivers.cluster import connect
from raylab.drivers.termination import TERMINATION
from raylab.drivers.tuning.best import best_yaml, summary
from raylab.drivers.tuning.orders import Orders
from raylab.drivers.tuning.page import tuning_record
from raylab.drivers.tuning.patience import Patience
from raylab.drivers.tuning.schedulers import remind, scheduler_of
from raylab.drivers.tuning.searcher import StudySearch
from raylab.drivers.tuning.study import DATABASE, TuningStudy
from raylab.drivers.tuning.trial import RunTrial
from raylab.drivers.tuning.watch import Watch
from raylab.errors import ConfigError, ResourceError
from raylab.records import RunFolder
from raylab.report import TuningView
from raylab.report.tuning_page import tuning_page

__all__ = ["alone", "carry_out", "study_of"]


def carry_out(folder: RunFolder, config: TuningConfig, *, progress: bool) -> ray_tune.ResultGrid:
    """Go on with a search until its budget is spent; write what it has found.

    Args:
        folder: of the search, with its config.yaml.
        config: of the search.
        progress: show the trials on standard error.

    Raises:
        ConfigError: another process carries it out.
        KeyboardInterrupt: it was interrupted; what has been found is kept.
        ResourceError: the cluster had no room for any trial in time, or others had the study
            locked for too long; what has been found is kept.
    """
    path, name = folder.path, folder.path.name
    names = [each.name for each in config.objectives]
    with alone(path), _quiet(), TuningView(
        f"tuning {name}", names, config.budget.trials, enabled=progress
    ) as view:  # fmt: skip
        study = study_of(path, name, config, view.say)
        own = connect()
        cpus = float(ray.cluster_resources().get("CPU", 1)) if own else None  # type: ignore[no-untyped-call]
        minutes = config.budget.minutes
        ends = math.inf if minutes is None else time.monotonic() + 60 * minutes - study.spent_s
        patient = config.scheduler.name != "none" or minutes is not None
        orders = Orders(config, path, cpus, patient=patient)
        scheduler = scheduler_of(config)
        remind(scheduler, study.trials(TrialState.COMPLETE, TrialState.PRUNED), config)
        # Tune's own handler of Ctrl-C ends all trials well, and may do so for other signals, too.
        stopping = TERMINATION.watched(lambda _: signal.raise_signal(signal.SIGINT))
        resumed_by = TERMINATION.resumed_by(lambda: f"raylab tune --resume {path}")
        watch, patience = Watch(study, config.objectives, view), Patience(view.say)
        tuner = ray_tune.Tuner(
            RunTrial,
            tune_config=ray_tune.TuneConfig(
                search_alg=StudySearch(study, config, orders, ends),
                scheduler=scheduler,
                num_samples=-1,  # the searcher says when it is enough
                max_concurrent_trials=orders.at_once(),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=ray_tune.RunConfig(
                name="ray",
                storage_path=str(path),
                failure_config=ray_tune.FailureConfig(max_failures=config.retries),
                checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
                stop=_End(ends, patience),
                callbacks=[watch, patience],
                verbose=0,
            ),
        )
        with resumed_by, stopping, _study_writable(study):
            grid = tuner.fit()
            watch.note_time()
            _keep(folder, study, config)
            TERMINATION.check()
        if patience.over is not None:
            raise ResourceError(f"{patience.over}; then go on with raylab tune --resume {path}")
        if study.trials(TrialState.RUNNING):
            view.say(f"interrupted: go on with raylab tune --resume {path}")
            raise KeyboardInterrupt
    return grid


def study_of(
    path: Path, name: str, config: TuningConfig, say: Callable[[str], None] | None = None
) -> TuningStudy:
    """Return the study in a search's folder, made if need be, with the points to begin with.

    Args:
        path: of the folder.
        name: of the study.
        config: of the search.
        say: takes a line for the user; None: standard error.
    """
    directions = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
    study = TuningStudy.made(
        path, name, [(each.name, directions[each.mode]) for each in config.objectives],
        config.plain(), say,
    )  # fmt: skip
    by_key = {domain.key: domain for domain in config.space}
    for point in config.search.start_from:
        labels = {key: by_key[key].label(value) for key, value in point.items()}
        study.optuna.enqueue_trial(labels, skip_if_exists=True)
    return study


def _keep(folder: RunFolder, study: TuningStudy, config: TuningConfig) -> None:
    """Write what the search has found."""
    best = best_yaml(study, config, folder.path.name)
    if best is not None:
        folder.folder.write("best.yaml", best.encode())
    folder.write_result({**summary(study, config), "path": folder.folder.uri})
    folder.write_report(tuning_page(tuning_record(study, config, folder.path)))


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep others from carrying out the same search; a process that is killed lets go."""
    lock = filelock.FileLock(path / f".{DATABASE}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(
            f"a search must be carried out by one process, but another one has {path}: wait until "
            "it has ended, or end it"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _study_writable(study: TuningStudy) -> Iterator[None]:
    """Raise that the study was locked for too long as it is, whatever Tune has made of it."""
    try:
        yield
    except Exception as error:
        if study.lock.error is not None:
            raise study.lock.error from error
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune and Optuna from telling in their words what the view tells: Tune prints a trial's
    error, whatever it is told.
    """
    logger = logging.getLogger("ray.tune")
    level, verbosity = logger.level, optuna.logging.get_verbosity()
    logger.setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        logger.setLevel(level)
        optuna.logging.set_verbosity(verbosity)


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['number']}"


class _End(ray_tune.Stopper):
    """Ends trials at their next report when the time is over, and all when there is no room."""

    def __init__(self, ends: float, patience: Patience) -> None:
        self._ends = ends
        self._patience = patience

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - Ray's
        return time.monotonic() > self._ends

    def stop_all(self) -> bool:
        return self._patience.over is not None
