"""The checkpoints of a run. One exists when its manifest does, which is written last.

checkpoints/step-00000120/stage-0.pt      a part: one stage's state, in torch's format
                          stage-1.pt
                          manifest.json   the parts' sizes and hashes, and what the run says of it
            final/model.pt                not touched here
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import torch

from raylab.errors import CheckpointError, ConfigError, DataError
from raylab.records.states import loadable
from raylab.records.storage import Storage

__all__ = ["CheckpointStore", "Part", "SavedCheckpoint"]

_FORMAT = "raylab checkpoint"
_VERSION = 1
_MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d{8}|[1-9]\d{8,})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CHUNK = 8 << 20
"""Bytes read at a time; for an object store each read is a request."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that was written.

    Args:
        name: of the part; its file is <name>.pt.
        size_bytes: of the file.
        sha256: of the file, 64 hexadecimal digits.
    """

    name: str
    size_bytes: int
    sha256: str


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
                must not change until this returns.

        Raises:
            CheckpointError: the state holds what could not be loaded again; the message names it.
            DataError: the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"a part's name must be of letters, digits and _.-, but got {name!r}")
        plain = loadable(state)
        folder = self._folder(step)
        # Written again, it is no checkpoint until it is committed again.
        folder.delete(_MANIFEST)
        written: list[Part] = []

        def save(file: BinaryIO) -> None:
            hashed = _Hashed(file)
            torch.save(plain, hashed)  # type: ignore[arg-type]
            written.append(Part(name, hashed.size_bytes, hashed.digest.hexdigest()))

        folder.write(f"{name}.pt", save)
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
            size = folder.size(f"{part.name}.pt")
            if size != part.size_bytes:
                raise CheckpointError(
                    f"{folder}/{part.name}.pt must have the {part.size_bytes} bytes that its stage "
                    f"wrote, but here it {'is missing' if size is None else f'has {size}'}: "
                    "stages on several nodes need a storage that all nodes see"
                )
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "step": step,
            "parts": {p.name: {"size_bytes": p.size_bytes, "sha256": p.sha256} for p in parts},
            "about": dict(about),
        }
        try:
            content = json.loads(json.dumps(content, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"what a checkpoint is about must be JSON, but {error}"
            ) from error
        sealed = {**content, "sha256": _seal(content)}
        folder.write(_MANIFEST, json.dumps(sealed, indent=2).encode())
        self._prune(step)
        return SavedCheckpoint(self, step, content["about"], {part.name: part for part in parts})

    def steps(self) -> list[int]:
        """Return the steps of all committed checkpoints, ascending."""
        return [step for step in self._all_steps() if self._folder(step).exists(_MANIFEST)]

    def newest(self) -> SavedCheckpoint | None:
        """Return the committed checkpoint of the highest step, None if there is none."""
        steps = self.steps()
        return self.open(steps[-1]) if steps else None

    def open(self, step: int) -> SavedCheckpoint:
        """Return a committed checkpoint.

        Raises:
            CheckpointError: there is none of this step, or its manifest is damaged or foreign.
        """
        folder = self._folder(step)
        if not folder.exists(_MANIFEST):
            raise CheckpointError(
                f"there must be a checkpoint of step {step}, but {folder} has no {_MANIFEST}: "
                f"{self.others(step)}"
            )
        try:
            parts, about = _read_manifest(folder.read(_MANIFEST), step)
        except (DataError, ValueError) as error:
            raise CheckpointError(
                f"{folder}/{_MANIFEST} must be the manifest that raylab wrote for step {step}, "
                f"but {error}: {self.others(step)}"
            ) from error
        return SavedCheckpoint(self, step, about, parts)

    def drop_after(self, step: int) -> None:
        """Delete checkpoints of later steps: a run that goes on from an older one leaves them."""
        for later in self._all_steps():
            if later > step:
                self._delete(later)

    def others(self, step: int) -> str:
        """Return what to do without this step, in words."""
        steps = [each for each in self.steps() if each != step]
        listed = ", ".join(map(str, steps))
        return f"take that of step {listed}" if steps else "there is no other checkpoint"

    def _folder(self, step: int) -> Storage:
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ConfigError(f"step >= 0 must hold for an integer, but got {step!r}")
        return self.folder.child(f"step-{step:08d}")

    def _all_steps(self) -> list[int]:
        matches = (_STEP.fullmatch(name) for name in self.folder.folders())
        return sorted(int(match[1]) for match in matches if match)

    def _prune(self, committed: int) -> None:
        steps = self.steps()
        kept = {committed, *(steps if self.keep is None else steps[-self.keep :])}
        for step in self._all_steps():
            if step < committed and step not in kept:
                self._delete(step)

    def _delete(self, step: int) -> None:
        # The manifest first: half a deletion must not look like a checkpoint.
        self._folder(step).delete(_MANIFEST)
        self.folder.delete(f"step-{step:08d}")


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A committed checkpoint, to read.

    Args:
        store: that it is in.
        step: batches done.
        about: what the run wrote about it.
        parts: by their names.
    """

    store: CheckpointStore
    step: int
    about: Mapping[str, Any]
    parts: Mapping[str, Part]

    @property
    def names(self) -> list[str]:
        """The parts' names, in the order in which they were committed."""
        return list(self.parts)

    def part(self, name: str) -> dict[str, Any]:
        """Return a part's state, on the CPU, after its file has been checked.

        Raises:
            CheckpointError: there is no such part, or its file is not what was committed.
        """
        with self._verified(name, to_load=True) as file:
            try:
                found = torch.load(file, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
                raise self._broken(name, f"torch cannot load it: {error}") from error
        if not isinstance(found, dict):
            raise self._broken(name, f"it holds a {type(found).__name__} in place of a dictionary")
        return found

    def verify(self) -> None:
        """Check all files against the manifest, without loading any.

        Raises:
            CheckpointError: one is not what was committed.
        """
        for name in self.parts:
            with self._verified(name, to_load=False):
                pass

    @contextlib.contextmanager
    def _verified(self, name: str, *, to_load: bool) -> Iterator[BinaryIO]:
        """Hash a part's file; give it from its start, a far one as a copy on this disk."""
        if name not in self.parts:
            listed = ", ".join(self.parts)
            raise CheckpointError(f"a part must be one of {listed}, but got {name!r}")
        part = self.parts[name]
        folder = self.store._folder(self.step)
        try:
            size = folder.size(f"{name}.pt")
            if size is None:
                raise self._broken(name, "it is missing")
            if size != part.size_bytes:
                raise self._broken(name, f"it has {size} bytes in place of {part.size_bytes}")
            with folder.open(f"{name}.pt") as file, contextlib.ExitStack() as stack:
                local = folder.local is not None
                copy = None
                if to_load and not local:
                    copy = stack.enter_context(tempfile.TemporaryFile())
                if _hash(file, copy) != part.sha256:
                    raise self._broken(name, "its bytes have changed (another SHA-256)")
                ready = file if copy is None else copy
                if to_load:
                    ready.seek(0)
                yield ready
        except DataError as error:
            raise self._broken(name, str(error)) from error

    def _broken(self, name: str, what: str) -> CheckpointError:
        path = f"{self.store._folder(self.step)}/{name}.pt"
        return CheckpointError(
            f"{path} must be the file that was committed, but {what}: "
            f"{self.store.others(self.step)}"
        )


class _Hashed:
    """A file to write to that hashes and counts what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: memoryview) -> int:
        self.digest.update(data)
        self.size_bytes += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _hash(file: BinaryIO, copy: IO[bytes] | None) -> str:
    """Return a file's SHA-256; what passes through goes into the copy too."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
        if copy is not None:
            copy.write(buffer[:count])
    return digest.hexdigest()


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(text: bytes, step: int) -> tuple[dict[str, Part], dict[str, Any]]:
    """Return the parts and what the run says of them; ValueError tells what is wrong."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError("it is something else")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"it has format version {content.get('version')} and this raylab reads {_VERSION}, "
            "so that another version of raylab is needed"
        )
    seal = content.pop("sha256", None)
    if seal != _seal(content):
        raise ValueError("its content has changed (another SHA-256)")
    if content["step"] != step:
        raise ValueError(f"it is that of step {content['step']}")
    parts = {name: Part(name, **figures) for name, figures in content["parts"].items()}
    return parts, content["about"]
