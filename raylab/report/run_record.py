"""A run as the report sees it, from memory at its end or from its folder later."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raylab.algorithms.pipeline import PIPELINE_METHODS
from raylab.documents import one_document
from raylab.errors import DataError
from raylab.records import Storage

__all__ = ["RunRecord", "number", "read_run", "read_runs"]

_NEEDED = ("step", "time_s")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run left.

    Args:
        name: of the run, foreign text.
        config: the resolved configuration.
        rows: of metrics.parquet, at least one.
        result: the content of result.json; empty if the run has not written it.
        timeline: rows of timeline.parquet.
    """

    name: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] = field(default_factory=dict)
    timeline: Sequence[Mapping[str, Any]] = ()

    @property
    def stages(self) -> int:
        """K."""
        found = [len(v) for k, v in self.rows[-1].items() if k.startswith("stage_") and v]
        return max(found, default=1)

    @property
    def averages(self) -> bool:
        """Whether its workers average their weights."""
        return "tau" in self.config

    def last(self, column: str) -> float | None:
        """Return the last finite value of a column."""
        found = (number(row.get(column)) for row in reversed(self.rows))
        return next((value for value in found if value is not None), None)

    def by_stage(self, column: str) -> list[list[float]]:
        """Return a `stage_` column: a list with one value a stage for every row that has it.

        A run that went on with another number of stages has rows of both; the last one counts.
        """
        found = [row[column] for row in self.rows if row.get(column)]
        return [each for each in found if len(each) == len(found[-1])]

    def predicted_samples_per_s(self) -> float | None:
        """Return the throughput that was planned, or follows from what was measured before.

        Delayed gradients let all stages work at once, so the slowest one sets the period of a
        batch: its forward and backward, and one more forward if its gradients are late and it
        replays, or grows its graphs anew.
        """
        measured = self.config.get("measured")
        for place in (self.result.get("plan"), self.config.get("plan"), measured):
            if isinstance(place, Mapping):
                for key in ("samples_per_s", "predicted_samples_per_s"):
                    found = number(place.get(key))
                    if found is not None:
                        return found
        batch_size = number(self.config.get("batch_size"))
        if self.averages:
            return self._predicted_of_averages(batch_size)
        if not isinstance(measured, Mapping) or batch_size is None:
            return None
        forward = measured.get("stage_forward_s")
        backward = measured.get("stage_backward_s")
        if not isinstance(forward, list) or not isinstance(backward, list):
            return None
        periods = [
            f + b + (f if again else 0.0)
            for f, b, again in zip(forward, backward, self._again(len(forward)), strict=False)
        ]
        return batch_size / max(periods) if periods and max(periods) > 0 else None

    def _again(self, stages: int) -> list[bool]:
        """Return which stages run a forward twice."""
        method = PIPELINE_METHODS.get(str(self.config.get("method")))
        if (
            method is None
            or not method.stale
            or not (method.replay or self.config.get("recompute"))
        ):
            return [False] * stages
        delays = self.config.get("delay")
        if not isinstance(delays, list):
            delays = [delays if isinstance(delays, int) else method.link_delay] * (stages - 1)
        return [any(delays[k:]) for k in range(stages)]

    def _predicted_of_averages(self, batch_size: float | None) -> float | None:
        """Return what follows from the times of a step and an average, where they are known."""
        config = self.config
        step_s, average_s = number(config.get("step_s")), number(self.result.get("average_s"))
        workers = number(config.get("workers"))
        if not step_s or average_s is None or not workers or batch_size is None:
            return None
        method = config.get("method")
        late = number(config.get("delay")) or 0 if method == "dasgd" else 0
        apart = 1 if method == "minibatch_sgd" else number(config.get("tau")) or 1
        return workers * batch_size / (step_s + max(0.0, average_s - late * step_s) / apart)


def number(value: Any) -> float | None:
    """Return a finite number as it is, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[RunRecord]:
    """Read runs, each with a name of its own.

    Args:
        paths: or addresses, each of the folder of a run, or of a folder of such folders.

    Raises:
        InputError: there is no such folder, no run in it, or a file of a run is broken.
    """
    found = {run.uri: run for path in paths for run in _runs_in(Storage.at(path))}
    names = [Path(uri).name for uri in found]
    return [
        read_run(run, name if names.count(name) == 1 else f"{Path(uri).parent.name}/{name}")
        for (uri, run), name in zip(found.items(), names, strict=True)
    ]


def read_run(folder: Storage, name: str | None = None) -> RunRecord:
    """Read one run.

    Args:
        folder: of the run.
        name: to show; None: the folder's.

    Raises:
        DataError: a file is missing or broken.
    """
    rows = _table(folder, "metrics.parquet")
    if not rows:
        raise DataError(f"a run must have a row of metrics to report, but {folder} has none")
    missing = [column for column in _NEEDED if column not in rows[0]]
    if missing:
        raise DataError(
            f"{folder}/metrics.parquet must be a run's metrics, but it has no column "
            f"{' and no '.join(missing)}"
        )
    return RunRecord(
        name=name or Path(folder.path).name,
        config=_mapping(folder, "config.yaml", one_document),
        rows=rows,
        result=_mapping(folder, "result.json", json.loads),
        timeline=_table(folder, "timeline.parquet"),
    )


def _runs_in(folder: Storage) -> list[Storage]:
    if folder.exists("metrics.parquet"):
        return [folder]
    if folder.exists("config.yaml"):
        raise DataError(
            f"the run in {folder} has no metrics.parquet: it has not ended, or it has failed"
        )
    inside = [folder.child(name) for name in folder.folders()]
    runs = [each for each in inside if each.exists("metrics.parquet")]
    if not runs:
        raise DataError(
            "PATH must be the folder of a run, with a metrics.parquet, or hold such folders, but "
            f"there is no run in {folder}"
        )
    return runs


def _table(folder: Storage, name: str) -> list[dict[str, Any]]:
    """Return the rows of a file, none where it is missing."""
    if not folder.exists(name):
        return []
    try:
        rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(folder.read(name))).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{folder}/{name} must be a Parquet file, but it is broken: {reason}"
        ) from error
    return rows


def _mapping(folder: Storage, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Return the content of a file, nothing where it is missing."""
    if not folder.exists(name):
        return {}
    try:
        content = parse(folder.read(name).decode())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{folder}/{name} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise DataError(f"{folder}/{name} must hold a mapping, but holds {type(content).__name__}")
    return content
