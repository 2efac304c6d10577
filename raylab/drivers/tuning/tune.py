"""`raylab.tune`: a search over runs, on Ray Tune.

<storage>/<name>/config.yaml    of the search
                 study.db       its memory, see `study.py`
                 trials/7/      the run of trial 7
                 ray/           what Ray Tune writes of itself; nothing is read from there
                 best.yaml      what raylab train takes
                 result.json    a summary
                 report.html    a page of it all, which needs no network
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import optuna
import ray
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray import tune as ray_tune

from raylab.config import apply_pairs, read_yaml
from raylab.config.tuning import TuningConfig, tuning_config
from raylab.drivers.cluster import connect
from raylab.drivers.tuning.best import best_yaml, summary
from raylab.drivers.tuning.orders import Orders, absolute
from raylab.drivers.tuning.page import tuning_record
from raylab.drivers.tuning.schedulers import remind, scheduler_of
from raylab.drivers.tuning.searcher import StudySearch
from raylab.drivers.tuning.space import suggest
from raylab.drivers.tuning.study import DATABASE, TuningStudy
from raylab.drivers.tuning.trial import RunTrial
from raylab.drivers.tuning.watch import Watch
from raylab.errors import ConfigError
from raylab.records import RunFolder, Storage, new_run_name
from raylab.report import TuningView
from raylab.report.tuning_page import tuning_page

__all__ = ["alone", "resume_tuning", "study_of", "tune"]

_MAY_CHANGE = ("budget", "concurrent", "retries", "scheduler")
"""Keys that a search that goes on may be given anew."""


def tune(
    config: TuningConfig | Mapping[str, Any] | str | os.PathLike[str], *, progress: bool = True
) -> ray_tune.ResultGrid:
    """Search for the best keys of a run, by many runs.

    What is found lies in the folder <storage>/<name>: best.yaml, result.json and the study. A
    search that was interrupted, however, goes on by `raylab tune --resume PATH`.

    >>> grid = raylab.tune({                                             # doctest: +SKIP
    ...     "train": {"method": "adl", "model": "mlp", "epochs": 4},
    ...     "space": {"lr": {"uniform": [0.001, 1.0], "log": True}, "accumulate": {"int": [1, 4]}},
    ...     "objectives": [{"metric": "test_loss"}],
    ... })
    >>> grid.get_best_result("test_loss", "min").config["params"]         # doctest: +SKIP

    Args:
        config: of the search: what `raylab tune` takes, as a mapping or a file of YAML.
        progress: show the trials on standard error.

    Returns:
        Ray Tune's: a result for each trial that has run here.

    Raises:
        InputError: the configuration cannot be used, or the folder holds another search.
        KeyboardInterrupt: it was interrupted; what has been found is kept.
    """
    if isinstance(config, (str, os.PathLike)):
        config = read_yaml(Path(config))
    if not isinstance(config, TuningConfig):
        config = tuning_config(config)
    _check(config)
    name = config.name or new_run_name("tune")
    given = {**config.plain(), "train": absolute(config.train), "name": name}
    folder = RunFolder(Storage.at(config.storage), name)
    folder.write_config(given)
    return _carry_out(folder, tuning_config(given), progress=progress)


def resume_tuning(
    path: str, pairs: Sequence[str] = (), *, progress: bool = True
) -> ray_tune.ResultGrid:
    """Go on with the search in a folder: trials that had begun, then the rest of the budget.

    Args:
        path: of the search's folder.
        pairs: key=value, of keys that may change: the budget, how many at a time, retries and the
            scheduler.
        progress: show the trials on standard error.

    Raises:
        InputError: the folder holds no search, another process carries it out, or a key may not
            change.
        KeyboardInterrupt: it was interrupted again.
    """
    folder = RunFolder.existing(_local(path))
    before = folder.read_config()
    if "space" not in before:
        raise ConfigError(f"{path} must hold a search, but it holds a run: raylab resume {path}")
    changed = {pair.partition("=")[0].partition(".")[0] for pair in pairs}
    if not changed <= set(_MAY_CHANGE):
        raise ConfigError(
            f"a search that goes on may be given {', '.join(_MAY_CHANGE)}, but got "
            f"{', '.join(sorted(changed - set(_MAY_CHANGE)))}, which would make it another search: "
            "raylab tune FILE.yaml key=value begins one"
        )
    given = {**apply_pairs(before, pairs, {}), "storage": str(folder.path.parent)}
    given["name"] = folder.path.name
    config = tuning_config(given)
    _check(config)
    folder.write_config(config.plain())
    return _carry_out(folder, config, progress=progress)


def _check(config: TuningConfig) -> None:
    """See that the first point can be run, before anything starts."""
    _local(config.storage)
    scheduler_of(config)
    Orders(config, Path("/"), None, patient=False)(0, suggest(_Lowest(), config))


def _local(path: str) -> Storage:
    if "://" in path:
        raise ConfigError(
            f"a search is kept in a local folder, since its study is a database, but got {path}: "
            "give it a local storage"
        )
    return Storage.at(path)


def _carry_out(folder: RunFolder, config: TuningConfig, *, progress: bool) -> ray_tune.ResultGrid:
    path, name = folder.path, folder.path.name
    names = [each.name for each in config.objectives]
    with alone(path), _quiet(), TuningView(
        f"tuning {name}", names, config.budget.trials, enabled=progress
    ) as view:  # fmt: skip
        study = study_of(path, name, config)
        own = connect()
        cpus = float(ray.cluster_resources().get("CPU", 1)) if own else None  # type: ignore[no-untyped-call]
        minutes = config.budget.minutes
        ends = math.inf if minutes is None else time.monotonic() + 60 * minutes - study.spent_s
        patient = config.scheduler.name != "none" or minutes is not None
        orders = Orders(config, path, cpus, patient=patient)
        scheduler = scheduler_of(config)
        remind(scheduler, study.trials(TrialState.COMPLETE, TrialState.PRUNED), config)
        watch = Watch(study, config.objectives, view)
        grid = ray_tune.Tuner(
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
                stop=_Deadline(ends),
                callbacks=[watch],
                verbose=0,
            ),
        ).fit()
        watch.note_time()
        _keep(folder, study, config)
        if study.trials(TrialState.RUNNING):
            view.say(f"interrupted: go on with raylab tune --resume {path}")
            raise KeyboardInterrupt
    return grid


def study_of(path: Path, name: str, config: TuningConfig) -> TuningStudy:
    """Return the study in a search's folder, made if need be, with the points to begin with.

    Args:
        path: of the folder.
        name: of the study.
        config: of the search.
    """
    directions = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
    study = TuningStudy.made(
        path, name, [(each.name, directions[each.mode]) for each in config.objectives],
        config.plain(),
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


class _Deadline(ray_tune.Stopper):
    """Ends trials at their next report when the time is over."""

    def __init__(self, ends: float) -> None:
        self._ends = ends

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - Ray's
        return time.monotonic() > self._ends

    def stop_all(self) -> bool:
        return False


class _Lowest:
    """Chooses the least of everything: a point, for a look at what it would be."""

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:  # noqa: ARG002
        return low

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:  # noqa: ARG002
        return low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:  # noqa: ARG002
        return choices[0]
