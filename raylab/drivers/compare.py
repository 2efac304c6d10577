"""Several methods under the same seeds, data and budget, one run after another."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raylab.config import PipelineConfig, RunConfiguration
from raylab.documents import one_document, read_text, shown
from raylab.drivers.commands import checked, train, with_method
from raylab.drivers.termination import TERMINATION
from raylab.errors import ConfigError, RaylabError
from raylab.records import Hold, Storage, check_run_name

__all__ = ["Comparison", "compare", "held", "plan_comparison"]

_FIGURES = (
    *("test_accuracy", "test_loss", "accuracy", "loss"),
    *("duality_gap", "gradient_norm", "primal", "greedy_return"),
)
_SUMMARY = ("samples_per_s", "staleness_mean", "time_s", "epochs", "ended_by")
_FREE = (
    "name",
    "stages",
    "delay",
    "data",
    "measured",
    "plan",
    "workers",
    "options",
    "resolved",
    "tau",
)
"""Keys that a run writes down more exactly than they were asked for."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run of a comparison.

    Args:
        config: of the run; `storage` is the comparison's folder, `name` the run's in it.
        path: of the run's folder.
        finished: the run is there already, with the same settings.
    """

    config: RunConfiguration
    path: Path
    finished: bool


def plan_comparison(
    config: RunConfiguration, methods: Sequence[str], seeds: Sequence[int]
) -> list[Comparison]:
    """Return the runs of a comparison, before any is started.

    Args:
        config: of all; `storage`/`name` is the comparison's folder.
        methods: to compare, the first is what the others are measured against.
        seeds: each method runs once with each.

    Raises:
        ConfigError: the name is no folder's, keys do not go together, a finished run has other
            settings, or `storage` is not on this machine.
    """
    folder = _folder(config)
    found = []
    for method in methods:
        for seed in seeds:
            label = method if len(seeds) == 1 else f"{method}-seed{seed}"
            update = {"seed": seed, "storage": str(folder), "name": label}
            mine = checked(with_method(config, method).model_copy(update=update))
            found.append(_placed(mine, folder, label))
    return found


@contextlib.contextmanager
def held(config: RunConfiguration) -> Iterator[None]:
    """Keep others from carrying out the same comparison during a block.

    Args:
        config: of all runs.

    Raises:
        ConfigError: another process carries it out, or `storage` is not on this machine.
    """
    with Hold.of(Storage.at(_folder(config))):
        yield


def _folder(config: RunConfiguration) -> Path:
    if "://" in config.storage:
        raise ConfigError(
            f"a comparison must be stored in a local folder, but got {config.storage}"
        )
    check_run_name(str(config.name))
    return Path(config.storage).expanduser().absolute() / str(config.name)


def _placed(config: RunConfiguration, folder: Path, label: str) -> Comparison:
    """Return where a run is or goes: a folder of one that has not finished is left as it is."""
    attempt = 1
    while True:
        name = label if attempt == 1 else f"{label}-{attempt}"
        path = folder / name
        if (path / "result.json").exists():
            _check_same(config, path)
            return Comparison(config=config, path=path, finished=True)
        if not (path / "config.yaml").exists():
            return Comparison(
                config=config.model_copy(update={"name": name}), path=path, finished=False
            )
        attempt += 1


def _check_same(config: RunConfiguration, path: Path) -> None:
    try:
        there = one_document(read_text(path / "config.yaml"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} must hold a run, but its config.yaml is broken") from error
    for key, value in config.model_dump().items():
        if key not in _FREE and key in there and there[key] != value:
            raise ConfigError(
                f"{path} holds a finished run with {key}={shown(there[key])}, but this one has "
                f"{key}={shown(value)}: choose another name"
            )
    if not isinstance(config, PipelineConfig):
        return
    stages = there.get("stages", 1)
    count = len(stages) + 1 if isinstance(stages, list) else stages
    asked = config.stages
    if asked not in (stages, count):
        raise ConfigError(
            f"{path} holds a finished run with stages={stages}, but this one has stages={asked}: "
            "choose another name"
        )


def compare(
    planned: Sequence[Comparison], *, progress: bool, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Carry a comparison out; yield what every run came to, as soon as it has.

    A run that fails, for instance because its loss became NaN, is told and does not end the rest.

    Args:
        planned: the runs.
        progress: show each run's progress on standard error.
        say: prints a line that announces a run.

    Yields:
        `method`, `seed`, `path`, `error` (None: finished) and the figures of the run.
    """
    for index, each in enumerate(planned, start=1):
        config = each.config
        label = f"[{index}/{len(planned)}] {config.method}, seed {config.seed}"
        outcome = {"method": config.method, "seed": config.seed, "path": str(each.path)}
        if each.finished:
            say(f"{label}: finished before")
            yield {**outcome, "error": None, **_figures(each.path)}
            continue
        say(label)
        TERMINATION.check()
        try:
            train(config, progress=progress)
        except RaylabError as error:
            say(f"{label}: failed: {error}")
            yield {**outcome, "error": str(error)}
        else:
            yield {**outcome, "error": None, **_figures(each.path)}


def _figures(path: Path) -> dict[str, Any]:
    result: Mapping[str, Any] = json.loads((path / "result.json").read_text(encoding="utf-8"))
    metrics = result.get("metrics", {})
    return {
        **{name: metrics.get(name) for name in _FIGURES},
        **{name: result.get(name) for name in _SUMMARY},
    }
