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

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune as ray_tune

from raylab.config import apply_pairs, read_yaml, run_config
from raylab.config.tuning import TuningConfig, tuning_config
from raylab.documents import shown
from raylab.drivers.commands import checked
from raylab.drivers.tuning.orders import Orders, absolute
from raylab.drivers.tuning.run import carry_out
from raylab.drivers.tuning.schedulers import scheduler_of
from raylab.drivers.tuning.space import suggest
from raylab.errors import ConfigError
from raylab.records import RunFolder, Storage, new_run_name

__all__ = ["resume_tuning", "tune"]

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
        ResourceError: the cluster had no room for any trial within its run's `wait_s`; what has
            been found is kept.
    """
    if isinstance(config, (str, os.PathLike)):
        config = read_yaml(Path(config))
    if not isinstance(config, (TuningConfig, Mapping)):
        raise ConfigError(
            "a search must be a mapping with train, space and objectives, or the path of a file, "
            f"but got {shown(config)}"
        )
    if not isinstance(config, TuningConfig):
        config = tuning_config(config)
    _check(config)
    name = config.name or new_run_name("tune")
    given = {**config.plain(), "train": absolute(config.train), "name": name}
    with RunFolder(Storage.at(config.storage), name) as folder:
        folder.write_config(given)
        return carry_out(folder, tuning_config(given), progress=progress)


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
        ResourceError: see `tune`.
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
    with RunFolder.resumed(folder.folder) as held:
        held.write_config(config.plain())
        return carry_out(held, config, progress=progress)


def _check(config: TuningConfig) -> None:
    """See that the first point can be run, before anything starts."""
    _local(config.storage)
    scheduler_of(config)
    order = Orders(config, Path("/"), None, patient=False)(0, suggest(_Lowest(), config))
    checked(run_config(order["train"]))


def _local(path: str) -> Storage:
    if "://" in path:
        raise ConfigError(
            f"a search is kept in a local folder, since its study is a database, but got {path}: "
            "give it a local storage"
        )
    return Storage.at(path)


class _Lowest:
    """Chooses the least of everything: a point, for a look at what it would be."""

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:  # noqa: ARG002
        return low

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:  # noqa: ARG002
        return low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:  # noqa: ARG002
        return choices[0]
