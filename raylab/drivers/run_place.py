"""Where the files of a run go, and the files that stay of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig
from torch import Tensor, nn

from actors.groups.within import within
from raylab.documents import shown
from raylab.drivers.kept import write_run
from raylab.drivers.result import Result
from raylab.errors import ConfigError
from raylab.records import STALE_S, CheckpointStore, EventWriter, RunFolder, Storage, new_run_name

__all__ = ["RunPlace", "keep", "run_config"]

_NEEDED = ("name", "storage_path", "storage_filesystem", "checkpoint_config", "failure_config")
_RAYS_NAME = "ray_train_run-"
_PATIENCE_S = 1.5 * STALE_S


def run_config(storage: str, name: str | None, checkpoints: int, failures: int) -> RunConfig:
    """Return Ray Train's RunConfig.

    Args:
        storage: folder of all runs, or an address.
        name: of the run.
        checkpoints: to keep.
        failures: that the run bears.
    """
    return RunConfig(
        storage_path=storage,
        name=name,
        checkpoint_config=CheckpointConfig(num_to_keep=checkpoints),
        failure_config=FailureConfig(max_failures=failures),
    )


class RunPlace:
    """What Ray Train's RunConfig says of a run's files and failures.

    Args:
        config: Ray Train's; None: ours, see `raylab.PipelineTrainer`.
        method: for a name with the time in it.
        tensorboard: write TensorBoard's events, too.

    Raises:
        ConfigError: it is no RunConfig, or TensorBoard's events would not be on this machine.
    """

    def __init__(self, config: RunConfig | None, method: str, *, tensorboard: bool) -> None:
        if config is not None and not all(hasattr(config, each) for each in _NEEDED):
            raise ConfigError(
                "run_config must be a ray.train.RunConfig, or None, but got "
                f"{shown(config)}: give RunConfig(name=..., storage_path=...)"
            )
        given = config or run_config("~/raylab_results", new_run_name(method), 2, 3)
        # Ray Train fills in its own, a name and a folder too, where they are not given. Its name
        # tells the second only: two short runs would meet in one folder.
        named = given.name and not given.name.startswith(_RAYS_NAME)
        self.name = str(given.name) if named else new_run_name(method)
        self.most_failures = (given.failure_config or FailureConfig()).max_failures
        self.kept = (given.checkpoint_config or CheckpointConfig()).num_to_keep
        self._filesystem = given.storage_filesystem
        self._storage = Storage.at(given.storage_path or "~/raylab_results", self._filesystem)
        self.tensorboard = tensorboard
        if tensorboard and self._storage.local is None:
            raise ConfigError(
                f"TensorBoard's events are written to a local folder, but the storage is "
                f"{self._storage}: leave tensorboard out, or choose a local storage"
            )

    def folder(self, resume: str | os.PathLike[str] | None) -> RunFolder:
        """Return the folder of a new run, or the one to go on in, held by this process.

        Raises:
            ConfigError: there is a run already, or none to go on with, or another process has it.
        """
        # A trial that begins again on another node cannot tell that its first process is dead.
        patience_s = 0.0 if within() is None else _PATIENCE_S
        if resume is None:
            return RunFolder(self._storage, self.name, patience_s=patience_s)
        return RunFolder.resumed(Storage.at(resume, self._filesystem), patience_s=patience_s)

    def checkpoints(self, folder: RunFolder) -> CheckpointStore:
        """Return where the checkpoints of a run go."""
        return CheckpointStore(folder.folder.child("checkpoints"), self.kept)

    def events(self, folder: RunFolder) -> EventWriter:
        """Return what writes TensorBoard's events, if it is to.

        Raises:
            ConfigError: the run's folder is not on this machine.
        """
        if not self.tensorboard:
            return EventWriter(None)
        if folder.folder.local is None:
            raise ConfigError(
                "tensorboard=True must have a run's folder on this machine, but got "
                f"{folder.folder}"
            )
        return EventWriter(folder.folder.local / "tensorboard")


def keep(
    folder: RunFolder,
    rows: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    figures: Mapping[str, Any],
    *,
    timeline: Sequence[Mapping[str, Any]] = (),
    model: nn.Module | None = None,
) -> Result:
    """Write rows, weights, summary and report into the run's folder; return the result.

    Args:
        folder: of the run.
        rows: of metrics.
        weights: by name.
        config: as config.yaml has it.
        figures: of the summary, those that runs of this kind have.
        timeline: spans of the first batches.
        model: that has the weights, of a pipeline.
    """
    kept = write_run(folder, rows, weights, config, figures, timeline=timeline)
    return Result(
        metrics=dict(rows[-1]),
        table=kept.table,
        weights=dict(weights),
        model=model,
        path=folder.path,
        filesystem=folder.folder.filesystem,
        checkpoint=Checkpoint(kept.weights.path, filesystem=kept.weights.filesystem),
        summary=kept.summary,
    )
