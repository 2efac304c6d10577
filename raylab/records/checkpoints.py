"""The checkpoints of a run. One exists when its manifest does, which is written last.

checkpoints/step-00000120/stage-0.pt      a part: one stage's state, in torch's format; with large
                                          arrays NAME.zip, see `late_arrays.py`
                          stage-1.pt
                          manifest.json   the parts' sizes and hashes, and what the run says of it
            final/model.pt                not touched here
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from raylab.errors import CheckpointError, ConfigError
from raylab.records.late_arrays import save_archive, taken_apart
from raylab.records.saved_checkpoint import (
    MANIFEST,
    Part,
    SavedCheckpoint,
    all_steps,
    committed_steps,
    open_checkpoint,
    sealed_manifest,
    step_folder,
)
from raylab.records.states import loadable
from raylab.records.storage import Storage

__all__ = ["CheckpointStore"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints in a folder. It can be pickled; parts may be written by several processes.

    >>> import tempfile
    >>> store = CheckpointStore(Storage.at(tempfile.mkdtemp()), keep=2)
    >>> part = store.write_part(120, "stage-0", {"weight": torch.ones(2), "epoch": 3})
    >>> store.newest() is None
    True
    >>> store.commit(120, [part], {"epoch": 3}).step
    120
    >>> store.newest().part("stage-0")
    {'weight': tensor([1., 1.]), 'epoch': 3}

    Args:
        folder: <run>/checkpoints; for several nodes, one that all of them see.
        keep: committed checkpoints to keep, None: all.
    """

    folder: Storage
    keep: int | None = 2

    def __post_init__(self) -> None:
        if self.keep is not None and (not isinstance(self.keep, int) or self.keep < 1):
            raise ConfigError(f"keep >= 1 must hold for a number, or None, but got {self.keep!r}")

    def write_part(self, step: int, name: str, state: Mapping[str, Any]) -> Part:
        """Write one part of a checkpoint that is not committed yet.

        Args:
            step: batches done.
            name: of the part: letters, digits and _ . -
            state: nested dictionaries, lists and tuples of tensors, numbers, texts and None; it
                must not change until this returns. A `LateArray` in a dictionary is read block by
                block and comes back as a tensor.

        Raises:
            CheckpointError: the state holds what could not be loaded again; the message names it.
            DataError: the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"a part's name must be of letters, digits and _.-, but got {name!r}")
        rest, late = taken_apart(state)
        plain = loadable(rest)
        suffix = "zip" if late else "pt"
        folder = self._folder(step)
        # Written again, it is no checkpoint until it is committed again.
        folder.delete(MANIFEST)
        written: list[Part] = []

        def save(file: BinaryIO) -> None:
            hashed = _Hashed(file)
            if late:
                save_archive(hashed, plain, late)
            else:
                torch.save(plain, hashed)  # type: ignore[arg-type]
            written.append(Part(name, hashed.size_bytes, hashed.digest.hexdigest(), suffix))

        folder.write(f"{name}.{suffix}", save)
        return written[0]

    def commit(
        self, step: int, parts: Collection[Part], about: Mapping[str, Any]
    ) -> SavedCheckpoint:
        """Make the parts a checkpoint; then delete the older ones that are not to be kept.

        Args:
            step: batches done.
            parts: all that belong to it.
            about: what else the run wants to know when it goes on; JSON.

        Raises:
            CheckpointError: a part is not in the folder, or `about` is not JSON.
            DataError: the manifest cannot be written.
        """
        folder = self._folder(step)
        if not parts or len({part.name for part in parts}) < len(parts):
            names = ", ".join(part.name for part in parts) or "none"
            raise CheckpointError(f"parts must have names of their own, but got {names}")
        for part in parts:
            size = folder.size(part.file)
            if size != part.size_bytes:
                raise CheckpointError(
                    f"{folder}/{part.file} must have the {part.size_bytes} bytes that its stage "
                    f"wrote, but here it {'is missing' if size is None else f'has {size}'}: "
                    "stages on several nodes need a storage that all nodes see"
                )
        folder.write(MANIFEST, sealed_manifest(step, parts, about))
        self._prune(step)
        return self.open(step)

    def steps(self) -> list[int]:
        """Return the steps of all committed checkpoints, ascending."""
        return committed_steps(self.folder)

    def newest(self) -> SavedCheckpoint | None:
        """Return the committed checkpoint of the highest step, None if there is none."""
        steps = self.steps()
        return self.open(steps[-1]) if steps else None

    def open(self, step: int) -> SavedCheckpoint:
        """Return a committed checkpoint.

        Raises:
            CheckpointError: there is none of this step, or its manifest is damaged or foreign.
        """
        _checked(step)
        return open_checkpoint(self.folder, step)

    def drop_after(self, step: int) -> None:
        """Delete checkpoints of later steps: a run that goes on from an older one leaves them."""
        for later in all_steps(self.folder):
            if later > step:
                self._delete(later)

    def _folder(self, step: int) -> Storage:
        return step_folder(self.folder, _checked(step))

    def _prune(self, committed: int) -> None:
        steps = self.steps()
        kept = steps if self.keep is None else steps[-self.keep :]
        for step in all_steps(self.folder):
            if step < committed and step not in kept:
                self._delete(step)

    def _delete(self, step: int) -> None:
        # The manifest first: half a deletion must not look like a checkpoint.
        self._folder(step).delete(MANIFEST)
        self.folder.delete(f"step-{step:08d}")


class _Hashed:
    """A file to write to that hashes and counts what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        self.digest.update(data)
        self.size_bytes += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _checked(step: int) -> int:
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ConfigError(f"step >= 0 must hold for an integer, but got {step!r}")
    return step
