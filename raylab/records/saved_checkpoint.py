"""A checkpoint that was committed: its manifest, and its parts, checked when they are read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import torch

from raylab.errors import CheckpointError, DataError
from raylab.records.late_arrays import ReadLate, load_archive, tensor_of
from raylab.records.storage import Storage

__all__ = [
    "MANIFEST",
    "Part",
    "SavedCheckpoint",
    "all_steps",
    "committed_steps",
    "open_checkpoint",
    "sealed_manifest",
    "step_folder",
    "way_out",
]

MANIFEST = "manifest.json"
_FORMAT = "raylab checkpoint"
_VERSION = 1
_STEP = re.compile(r"step-(\d{8}|[1-9]\d{8,})")
_CHUNK = 8 << 20
"""Bytes read at a time; for an object store each read is a request."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that was written.

    Args:
        name: of the part; its file is <name>.<suffix>.
        size_bytes: of the file.
        sha256: of the file, 64 hexadecimal digits.
        suffix: pt: torch's format; zip: see `late_arrays.py`.
    """

    name: str
    size_bytes: int
    sha256: str
    suffix: str = "pt"

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name}.{self.suffix}"


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A committed checkpoint, to read.

    Args:
        checkpoints: folder that it is in, with the others of the run.
        step: batches done.
        about: what the run wrote about it.
        parts: by their names.
    """

    checkpoints: Storage
    step: int
    about: Mapping[str, Any]
    parts: Mapping[str, Part]

    @property
    def names(self) -> list[str]:
        """The parts' names, in the order in which they were committed."""
        return list(self.parts)

    def part(self, name: str, read: ReadLate = tensor_of) -> dict[str, Any]:
        """Return a part's state, on the CPU, after its file has been checked.

        Args:
            name: of the part.
            read: makes what stands where a late array was; default: a tensor of all its rows.

        Raises:
            CheckpointError: there is no such part, or its file is not what was committed.
        """
        with self._verified(name, to_load=True) as file:
            try:
                if self.parts[name].suffix == "zip":
                    found = load_archive(file, read)
                else:
                    found = torch.load(file, map_location="cpu", weights_only=True)
            except (OSError, MemoryError):
                raise
            except Exception as error:
                # A stranger's file leads torch to errors of many kinds.
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
        folder = step_folder(self.checkpoints, self.step)
        try:
            size = folder.size(part.file)
            if size is None:
                raise self._broken(name, "it is missing")
            if size != part.size_bytes:
                raise self._broken(name, f"it has {size} bytes in place of {part.size_bytes}")
            with folder.open(part.file) as file, contextlib.ExitStack() as stack:
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
        path = f"{step_folder(self.checkpoints, self.step)}/{self.parts[name].file}"
        return CheckpointError(
            f"{path} must be the file that was committed, but {what}: "
            f"{way_out(self.checkpoints, self.step)}"
        )


def step_folder(checkpoints: Storage, step: int) -> Storage:
    """Return the folder of one step."""
    return checkpoints.child(f"step-{step:08d}")


def all_steps(checkpoints: Storage) -> list[int]:
    """Return the steps that have a folder, committed or not, ascending."""
    matches = (_STEP.fullmatch(name) for name in checkpoints.folders())
    return sorted(int(match[1]) for match in matches if match)


def committed_steps(checkpoints: Storage) -> list[int]:
    """Return the steps that have a manifest, ascending."""
    steps = all_steps(checkpoints)
    return [step for step in steps if step_folder(checkpoints, step).exists(MANIFEST)]


def way_out(checkpoints: Storage, step: int) -> str:
    """Return what to do without this step, in words."""
    steps = [each for each in committed_steps(checkpoints) if each != step]
    listed = ", ".join(map(str, steps))
    return f"take that of step {listed}" if steps else "there is no other checkpoint"


def sealed_manifest(step: int, parts: Collection[Part], about: Mapping[str, Any]) -> bytes:
    """Return the manifest's content, with its own hash in it.

    Raises:
        CheckpointError: `about` is not JSON.
    """
    figures: dict[str, dict[str, Any]] = {}
    for part in parts:
        figures[part.name] = {"size_bytes": part.size_bytes, "sha256": part.sha256}
        if part.suffix != "pt":
            figures[part.name]["suffix"] = part.suffix
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "step": step,
        "parts": figures,
        "about": dict(about),
    }
    try:
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"about must be JSON content, but {error}") from error
    return json.dumps({**content, "sha256": _seal(content)}, indent=2).encode()


def open_checkpoint(checkpoints: Storage, step: int) -> SavedCheckpoint:
    """Return a committed checkpoint.

    Raises:
        CheckpointError: there is none of this step, or its manifest is damaged or foreign.
    """
    folder = step_folder(checkpoints, step)
    if not folder.exists(MANIFEST):
        raise CheckpointError(
            f"there must be a checkpoint of step {step}, but {folder} has no {MANIFEST}: "
            f"{way_out(checkpoints, step)}"
        )
    try:
        parts, about = _parsed(folder.read(MANIFEST), step)
    except (DataError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{folder}/{MANIFEST} must be the manifest that raylab wrote for step {step}, "
            f"but {error}: {way_out(checkpoints, step)}"
        ) from error
    return SavedCheckpoint(checkpoints, step, about, parts)


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


def _parsed(text: bytes, step: int) -> tuple[dict[str, Part], dict[str, Any]]:
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
