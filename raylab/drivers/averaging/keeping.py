"""The checkpoints of a run, kept by Ray Train: one part for each worker.

<run>/checkpoints/step-00000120/worker-00000.pt          all of them: a checkpoint
                                worker-00001.pt
                  checkpoint_manager_snapshot.json       Ray Train's list of those that are whole
"""

from __future__ import annotations

import contextlib
import json
import pickle
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint

from raylab.errors import CheckpointError
from raylab.records import Storage
from raylab.records.states import loadable

__all__ = ["SNAPSHOT", "RayKeeper", "rewind", "saved_parts", "saved_steps"]

SNAPSHOT = "checkpoint_manager_snapshot.json"


class RayKeeper:
    """Gives this worker's part of a checkpoint to Ray Train, which stores all parts together."""

    def keep(self, step: int, parts: Sequence[Mapping[str, Any]]) -> None:
        """Keep the parts of the local replicas; all workers call this at the same step.

        Args:
            step: local steps done.
            parts: one for each local replica.

        Raises:
            CheckpointError: a state holds what could not be loaded again; the message names it.
        """
        with tempfile.TemporaryDirectory() as folder:
            for part in parts:
                torch.save(loadable(dict(part)), Path(folder) / _file_of(part["worker"]))
            ray.train.report(
                {"step": step},
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"step-{step:08d}",
            )


def saved_parts(checkpoint: Checkpoint | None) -> list[dict[str, Any]]:
    """Return the parts of a checkpoint in the order of the workers, none of None.

    Raises:
        CheckpointError: one is missing or damaged; the message names the file.
    """
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        parts = [_load(path) for path in sorted(Path(folder).glob("worker-*.pt"))]
    count = parts[0]["loop"]["workers"] if parts else 1
    if len(parts) != count:
        raise CheckpointError(
            f"{checkpoint.path} must hold the parts of {count} workers, but it holds {len(parts)}: "
            "raylab resume PATH --step N takes an older one"
        )
    return parts


def saved_steps(folder: Storage) -> list[int]:
    """Return the steps of the checkpoints that Ray Train calls whole, ascending.

    Args:
        folder: of the checkpoints.

    Raises:
        CheckpointError: its list is damaged.
    """
    return sorted(_step_of(each) for each in _snapshot(folder).get("checkpoint_results", ()))


def rewind(folder: Storage, step: int | None) -> None:
    """Make an older checkpoint the newest one; those after it are deleted.

    Args:
        folder: of the checkpoints.
        step: of the checkpoint; None: the newest stays.

    Raises:
        CheckpointError: there is none of this step, or Ray Train's list is damaged.
    """
    steps = saved_steps(folder)
    if step is None:
        return
    if step not in steps:
        raise CheckpointError(
            f"there must be a checkpoint of step {step} in {folder}, but there are "
            f"{', '.join(map(str, steps)) or 'none'}"
        )
    snapshot = _snapshot(folder)
    results = snapshot["checkpoint_results"]
    kept = [place for place, each in enumerate(results) if _step_of(each) <= step]
    for name, listed in snapshot.items():
        # Beside the results, in their order, stand the reports that they came with.
        if name in ("checkpoint_results", "checkpoint_report_indices"):
            snapshot[name] = [listed[place] for place in kept]
    snapshot["latest_checkpoint_result"] = max(snapshot["checkpoint_results"], key=_step_of)
    # The list first: what it does not name is no checkpoint, whatever lies there.
    folder.write(SNAPSHOT, json.dumps(snapshot).encode())
    for later in steps:
        if later > step:
            folder.delete(f"step-{later:08d}")


def _snapshot(folder: Storage) -> dict[str, Any]:
    if not folder.exists(SNAPSHOT):
        return {}
    with contextlib.suppress(ValueError, UnicodeDecodeError):
        found = json.loads(folder.read(SNAPSHOT))
        if isinstance(found, dict):
            return found
    raise CheckpointError(
        f"{folder}/{SNAPSHOT} must be the list of checkpoints that Ray Train writes, but it is "
        "damaged: begin a new run"
    )


def _step_of(result: Mapping[str, Any]) -> int:
    return int(str(result["checkpoint_dir_name"]).removeprefix("step-"))


def _file_of(worker: int) -> str:
    return f"worker-{worker:05d}.pt"


def _load(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} must be a worker's part of a checkpoint, but it is damaged: {error}: "
            "raylab resume PATH --step N takes an older one"
        ) from error
    return found
