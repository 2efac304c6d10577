"""What the commands do with a configuration of any family."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from raylab.config import (
    AveragingConfig,
    ParameterServerConfig,
    PipelineConfig,
    RunConfiguration,
    apply_pairs,
    run_config,
)
from raylab.drivers.listener import OnRow
from raylab.drivers.result import Result
from raylab.errors import ConfigError
from raylab.records import Hold, RunFolder, Storage

__all__ = ["checked", "resolved", "resume", "train", "with_method"]

_ALWAYS = {
    *("epochs", "wire", "wait_s", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints"),
    "max_failures",
}
_MAY_CHANGE: dict[type[RunConfiguration], set[str]] = {
    PipelineConfig: {
        *("stages", "delay", "carrier", "cpus_per_stage", "gpus_per_stage"),
        *("evaluate_every", "eval_batch_size", "report_every", "timeline", "tensorboard"),
        *("recompute", "barrier", "data_root", "download"),
    },
    AveragingConfig: {
        *("workers", "cpus_per_worker", "gpus_per_worker", "resize_s", "timeout_s"),
        *("evaluate_every", "eval_batch_size", "report_every", "tensorboard"),
        *("data_root", "download"),
    },
    ParameterServerConfig: {
        *("workers", "messages", "tolerance", "certify_every", "cpus_per_worker"),
        *("straggler", "sample_s", "broadcast", "delta", "local_steps"),
    },
}
"""Keys that a run that goes on may be given anew: the others would make it another run."""
_ENDS = ("epochs", "messages", "tolerance")


def train(
    config: RunConfiguration,
    *,
    progress: bool,
    resume: str | None = None,
    resume_step: int | None = None,
    on_row: OnRow | None = None,
) -> Result:
    """Train as `config` says and return the result.

    Args:
        config: of the run.
        progress: show progress on standard error.
        resume: folder of a run to go on with.
        resume_step: of an older checkpoint of it.
        on_row: called with every row of metrics as it comes, maybe from another thread; a True
            ends the run early and well: what is under way is finished, actors are closed as at a
            normal end, and result.json says `stopped`: "asked".

    Raises:
        InputError: the configuration does not fit together, or the data, or the cluster.
        RaylabError: the run failed.
    """
    where: dict[str, Any] = {
        "progress": progress,
        "resume": resume,
        "resume_step": resume_step,
        "on_row": on_row,
    }
    # Each brings in what it needs alone.
    if isinstance(config, ParameterServerConfig):
        from raylab.drivers.server.command import run_server

        return run_server(config, **where)
    if isinstance(config, AveragingConfig):
        from raylab.drivers.averaging.command import run_averaging

        return run_averaging(config, **where)
    from raylab.drivers.pipeline.command import run_pipeline

    return run_pipeline(config, **where)


def checked(config: RunConfiguration) -> RunConfiguration:
    """Return `resolved`, with keys that go together: asked before the first of several runs starts.

    Raises:
        InputError: a later run could not begin.
    """
    found = resolved(config)
    if isinstance(found, ParameterServerConfig):
        from raylab.drivers.server.command import check_server

        check_server(found)
    return found


def resolved(config: RunConfiguration) -> RunConfiguration:
    """Return `config` with every default as a number; resolving it again changes nothing."""
    if isinstance(config, ParameterServerConfig):
        from raylab.drivers.server.command import resolve_server

        return resolve_server(config)
    if isinstance(config, AveragingConfig):
        from raylab.drivers.averaging.resolved import resolve_averaging

        return resolve_averaging(config)
    from raylab.drivers.resolve import resolve

    return resolve(config)


def with_method(config: RunConfiguration, method: str) -> RunConfiguration:
    """Return `config` for another method of its family, without the keys that are not its own."""
    if isinstance(config, AveragingConfig):
        from raylab.drivers.averaging.resolved import with_method as averaging_with

        return config.model_copy(update=averaging_with(method))
    return config.model_copy(update={"method": method})


def resume(
    path: str, pairs: Sequence[str], *, step: int | None = None, progress: bool = True
) -> Result:
    """Go on with the run in a folder, from its newest checkpoint.

    Args:
        path: of the run's folder, or its address.
        pairs: key=value, of keys that may change.
        step: of an older checkpoint.
        progress: show progress on standard error.

    Raises:
        InputError: the folder holds no run or a finished one, a key may not change, or the
            checkpoint is damaged.
        RaylabError: the run failed.
    """
    folder = RunFolder.existing(Storage.at(path))
    # Before the data is read: where the run goes on, its folder is taken, with the same error.
    Hold.refuse_others(folder.folder)
    before = folder.read_config()
    was = run_config(before)
    config = run_config(apply_pairs(before, pairs))
    changed = {pair.partition("=")[0].partition(".")[0] for pair in pairs}
    may_change = _ALWAYS | _MAY_CHANGE[type(config)]
    if not changed <= may_change:
        raise ConfigError(
            f"a run that goes on may be given {', '.join(sorted(may_change))}, but got "
            f"{', '.join(sorted(changed - may_change))}, which would make it another run: "
            "raylab train FILE.yaml key=value begins one"
        )
    finished = folder.folder.exists("result.json") and not _stopped(folder)
    if finished and not _goes_further(config, was):
        raise ConfigError(
            f"a run that goes on must not be finished, but {folder.folder} has its result.json: "
            f"give it more epochs, for instance epochs={2 * int(was.epochs or 1)}"
        )
    if isinstance(config, PipelineConfig) and "stages" in changed and "delay" not in changed:
        # The delays that were written down belong to the links that were.
        config = config.model_copy(update={"delay": None})
    return train(config, progress=progress, resume=path, resume_step=step)


def _stopped(folder: RunFolder) -> bool:
    """Tell whether a run has a result because it was asked for it before its end."""
    return json.loads(folder.folder.read("result.json")).get("stopped") is not None


def _goes_further(config: RunConfiguration, was: RunConfiguration) -> bool:
    if isinstance(config, (PipelineConfig, AveragingConfig)):
        return config.epochs > int(was.epochs or 0)
    return any(getattr(config, name) != getattr(was, name) for name in _ENDS)
