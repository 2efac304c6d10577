"""The numbers of a run's rows as scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["EventWriter"]

_TAGS = {
    "loss": "train/loss",
    "accuracy": "train/accuracy",
    "test_loss": "test/loss",
    "test_accuracy": "test/accuracy",
}
"""Columns that belong together in one chart; every other one is its own tag."""


class EventWriter:
    """Write rows as scalars while a run goes on, as a context that ends with the file on disk.

    A number is one point; a list with one number a stage is one curve a stage, such as
    `staleness_mean/stage0`.

    Args:
        folder: of the event file; None writes nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: Any = None

    def __enter__(self) -> EventWriter:
        if self._folder is not None:
            # It comes with Ray Tune, and torch's own writer would want a further package.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), write_to_disk=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows; the x axis is the step, in batches."""
        if self._writer is None:
            return
        for row in rows:
            for tag, value in _scalars(row):
                self._writer.add_scalar(tag, value, row["step"])
        if rows:
            self._writer.flush()


def _scalars(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in row.items():
        if isinstance(value, (int, float)) and name != "step":
            found.append((_TAGS.get(name, name), float(value)))
        elif name.startswith("stage_") and isinstance(value, (list, tuple)):
            found += [
                (f"{name.removeprefix('stage_')}/stage{k}", float(each))
                for k, each in enumerate(value)
                if isinstance(each, (int, float))
            ]
    return found
