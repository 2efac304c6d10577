"""What a run returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
from ray.train import Checkpoint
from torch import Tensor, nn

__all__ = ["Result"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a run.

    Args:
        metrics: the last row of the table.
        table: all rows, one per report.
        weights: of the trained model, by name, on the CPU.
        model: of a pipeline, the trained model: the caller's, with the same state_dict keys.
        path: the run's folder; on a file system elsewhere, the path inside it.
        filesystem: that the path is on.
        checkpoint: Ray Train's handle of the final weights (`model.pt`, a state_dict).
        summary: the content of result.json.
    """

    metrics: dict[str, Any]
    table: pa.Table
    weights: Mapping[str, Tensor]
    path: Path
    filesystem: pyarrow.fs.FileSystem
    checkpoint: Checkpoint
    summary: dict[str, Any]
    model: nn.Module | None = None
