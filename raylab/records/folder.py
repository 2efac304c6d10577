"""The folder of a run. Every file is written aside and renamed, so that none is ever half-written.

<storage>/<name>/config.yaml           the resolved configuration
                 metrics.parquet       one row per report
                 timeline.parquet      what each stage did when, in the first batches
                 result.json           summary, versions, seed, commit
                 report.html           all of it to look at, in one page
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
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from torch import Tensor

from raylab.errors import ConfigError

__all__ = ["RunFolder", "new_run_name"]

_PACKAGES = ("raylab-train", "ray", "torch", "torchvision", "pyarrow", "pyzmq", "numpy")


def new_run_name(prefix: str) -> str:
    """Return a name with the time in it, such as adl-20240131-235959-007."""
    now = datetime.now()
    return f"{prefix}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"


class RunFolder:
    """One run's files.

    Args:
        storage: folder of all runs, made if missing.
        name: of this run; a folder of this name must not hold a run yet.

    Raises:
        ConfigError: the folder holds a run already, or cannot be made.
    """

    def __init__(self, storage: Path, name: str) -> None:
        if not name or "\0" in name or name in (".", "..") or Path(name).name != name:
            raise ConfigError(f"name must be one plain folder name, but got {name!r}")
        self.path = (storage.expanduser() / name).absolute()
        try:
            if (self.path / "config.yaml").exists():
                raise ConfigError(
                    f"a run's folder must be new, but {self.path} holds a run: choose another name"
                )
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder {self.path}: {error.strerror}") from error

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml."""
        text = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
        _replace(self.path / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Write metrics.parquet; return the table."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        _replace(self.path / "metrics.parquet", lambda path: pq.write_table(table, path))
        return table

    def write_timeline(self, spans: Sequence[Mapping[str, Any]]) -> None:
        """Write timeline.parquet, nothing where there are no spans."""
        if spans:
            table = pa.Table.from_pylist([dict(span) for span in spans])
            _replace(self.path / "timeline.parquet", lambda path: pq.write_table(table, path))

    def write_report(self, page: str) -> Path:
        """Write report.html; return its path."""
        target = self.path / "report.html"
        _replace(target, lambda path: path.write_text(page, encoding="utf-8"))
        return target

    def write_result(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write result.json with versions and commit added; return its content."""
        content = {
            **summary,
            "versions": {"python": platform.python_version(), **_versions()},
            "commit": _commit(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        }
        text = json.dumps(_finite(_plain(content)), indent=2, allow_nan=False)
        _replace(self.path / "result.json", lambda path: path.write_text(text, encoding="utf-8"))
        found: dict[str, Any] = json.loads(text)
        return found

    def write_weights(self, state: Mapping[str, Tensor]) -> Path:
        """Write the final weights as a state_dict; return the checkpoint's folder."""
        folder = self.path / "checkpoints" / "final"
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "model.pt", lambda path: torch.save(dict(state), path))
        return folder


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    aside = Path(name)
    try:
        write(aside)
        aside.chmod(0o644)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


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


def _plain(value: Any) -> Any:
    """Return a value of lists, dictionaries, numbers and text; anything else by its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by their names."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
