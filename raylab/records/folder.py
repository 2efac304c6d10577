"""The folder of a run. No file in it is ever half-written: see `Storage`.

<storage>/<name>/config.yaml           the resolved configuration
                 metrics.parquet       one row per report
                 timeline.parquet      what each stage did when, in the first batches
                 result.json           summary, versions, seed, commit
                 report.html           all of it to look at, in one page
                 checkpoints/          step-00000120 and so on: see `CheckpointStore`
                 checkpoints/final/    model.pt: the trained weights
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from torch import Tensor
from typing_extensions import Self

from raylab.documents import one_document
from raylab.errors import CheckpointError, ConfigError, DataError
from raylab.records.hold import Hold
from raylab.records.states import loadable
from raylab.records.storage import Storage

__all__ = ["RunFolder", "check_run_name", "new_run_name"]

_PACKAGES = ("raylab-train", "ray", "torch", "torchvision", "pyarrow", "pyzmq", "numpy")


def new_run_name(prefix: str) -> str:
    """Return a name with the time in it, such as adl-20240131-235959-007."""
    now = datetime.now()
    return f"{prefix}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"


def check_run_name(name: str) -> None:
    """Check the name of a run, or of a folder of runs.

    Raises:
        ConfigError: it is no plain name of a folder.
    """
    if not name or "\0" in name or name in (".", "..") or Path(name).name != name:
        raise ConfigError(f"name must be one plain folder name, but got {name!r}")


class RunFolder:
    """One run's files. A new run's folder is held by this process, see `Hold`, until `release`, the
    end of the block that enters it, or the end of the process.

    Args:
        storage: folder of all runs, made if missing.
        name: of this run; a folder of this name must not hold a run yet.
        patience_s: how long to wait for another process that holds the folder.

    Raises:
        ConfigError: the folder holds a run already, is held, or cannot be made.
    """

    folder: Storage
    """The run's own."""

    def __init__(self, storage: Storage, name: str, *, patience_s: float = 0.0) -> None:
        check_run_name(name)
        child = storage.child(name)
        self._made = child.make()
        self.folder = child.rooted()
        self._check_new()
        self._hold: Hold | None = Hold.take(child, patience_s=patience_s)
        self._begun = False
        try:
            # Another run may have come and gone between the look and the hold.
            self._check_new()
        except ConfigError:
            self._hold.release()
            raise

    @classmethod
    def resumed(cls, folder: Storage, *, patience_s: float = 0.0) -> RunFolder:
        """Open the folder of a run to go on in it: held as that of a new one.

        Args:
            folder: of the run.
            patience_s: how long to wait for another process that holds the folder.

        Raises:
            ConfigError: it is not the folder of a run, or is held.
        """
        run = cls.existing(folder)
        run._hold = Hold.take(folder, patience_s=patience_s)
        run.folder = folder.rooted()
        return run

    @classmethod
    def existing(cls, folder: Storage) -> RunFolder:
        """Open the folder of a run to read it, whoever holds it.

        Raises:
            ConfigError: it is not the folder of a run.
        """
        if not folder.exists("config.yaml"):
            raise ConfigError(
                f"a run's folder must hold config.yaml, and it has metrics.parquet, result.json "
                f"and checkpoints beside it, but {folder} holds "
                f"{', '.join(folder.names()[:5]) or 'nothing'}: check the path"
            )
        run = cls.__new__(cls)
        run.folder = folder
        run._made = []
        run._hold = None
        run._begun = True
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the folder back; one that was made for a run that has not begun is removed."""
        if self._hold is None:
            return
        unused = bool(self._made) and not self._begun
        with contextlib.suppress(DataError):
            for name in ("checkpoints", "tensorboard") if unused else ():
                self.folder.delete(name)
        self._hold.release()
        if unused:
            self.folder.remove_empty(self._made)
        self._hold = None

    def check(self) -> None:
        """See that the folder is there and still held, where this process holds it.

        Raises:
            DataError: it was moved or deleted, or another process has taken it.
        """
        if self._hold is not None:
            self._hold.check()

    def _check_new(self) -> None:
        if self.folder.exists("config.yaml"):
            raise ConfigError(
                f"a run's folder must be new, but {self.folder} holds a run: choose another name"
            )

    @property
    def path(self) -> Path:
        """The path of the folder, inside its file system."""
        return Path(self.folder.path)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml."""
        plain = _plain(config, named=False)
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        self._begun = True
        self.folder.write("config.yaml", text.encode())

    def read_config(self) -> dict[str, Any]:
        """Return the content of config.yaml.

        Raises:
            ConfigError: it is not the YAML of a mapping.
        """
        try:
            found = one_document(self.folder.read("config.yaml"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.folder}/config.yaml must be YAML, but {error}") from error
        if not isinstance(found, dict):
            raise ConfigError(
                f"{self.folder}/config.yaml must hold the keys of a run, but it holds a "
                f"{type(found).__name__}"
            )
        return found

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Write metrics.parquet with all rows, in place of the one before; return the table."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        self.folder.write("metrics.parquet", lambda file: pq.write_table(table, file))
        return table

    def write_timeline(self, spans: Sequence[Mapping[str, Any]]) -> None:
        """Write timeline.parquet, nothing where there are no spans."""
        if spans:
            table = pa.Table.from_pylist([dict(span) for span in spans])
            self.folder.write("timeline.parquet", lambda file: pq.write_table(table, file))

    def write_report(self, page: str) -> Path:
        """Write report.html; return its path."""
        self.folder.write("report.html", page.encode())
        return self.path / "report.html"

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.parquet, none where there is no such file yet.

        Raises:
            DataError: it is not a parquet file.
        """
        return self._read_rows("metrics.parquet")

    def read_timeline(self) -> list[dict[str, Any]]:
        """Return the spans of timeline.parquet, none where there is no such file yet.

        Raises:
            DataError: it is not a parquet file.
        """
        return self._read_rows("timeline.parquet")

    def _read_rows(self, name: str) -> list[dict[str, Any]]:
        if not self.folder.exists(name):
            return []
        try:
            table = pq.read_table(pa.BufferReader(self.folder.read(name)))
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.folder}/{name} must be a parquet file, but {error}: move it away to go on "
                "without the rows so far"
            ) from error
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def write_result(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write result.json with versions and commit added; return its content."""
        content = {
            **summary,
            "versions": {"python": platform.python_version(), **_versions()},
            "commit": _commit(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        }
        text = json.dumps(_plain(content, named=True), indent=2, allow_nan=False)
        self.folder.write("result.json", text.encode())
        found: dict[str, Any] = json.loads(text)
        return found

    def write_weights(self, state: Mapping[str, Tensor]) -> Storage:
        """Write the final weights as a state_dict; return the checkpoint's folder.

        An extra state that has become one that `torch.load(weights_only=True)` would refuse is
        left out, with a warning: the training behind it is not lost for it.
        """
        folder = self.folder.child("checkpoints", "final")
        kept: dict[str, Any] = {}
        for name, value in state.items():
            try:
                kept |= loadable({name: value})
            except CheckpointError as error:  # noqa: PERF203 - a handful of keys
                warnings.warn(f"model.pt is without {name!r}: {error}", stacklevel=2)
        folder.write("model.pt", lambda file: torch.save(kept, file))
        return folder


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> str | None:
    """Return the commit that raylab runs from, None where it is not a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git the user has
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _plain(value: Any, *, named: bool) -> Any:
    """Return a value of lists, dictionaries, numbers and text; anything else by its text.

    Args:
        value: to turn.
        named: also NaN and the infinities by their names, since JSON does not have them.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(each, named=named) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, named=named) for each in value]
    if isinstance(value, float) and named and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
