"""The live progress bar of a run, on standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

__all__ = ["Progress"]


class Progress:
    """A bar over all batches of a run, with the last row's figures beside it.

    Where standard error is no terminal, a line an epoch is printed instead.

    Args:
        title: what is running.
        batches: in all epochs; None if it is not known.
        enabled: False shows nothing.
    """

    def __init__(self, title: str, batches: int | None, *, enabled: bool = True) -> None:
        self._console = Console(stderr=True, quiet=not enabled)
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._title = title
        self._batches = batches
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._bar.start()
        self._task = self._bar.add_task(
            self._title, total=self._batches, figures="starting the stages"
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False)

    def show(self, done: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show that `done` batches have begun, and the newest row."""
        if self._task is None:
            return
        self._bar.update(self._task, completed=done)
        for row in rows:
            figures = _figures(row)
            self._bar.update(self._task, figures=figures)
            if row.get("epoch") is not None:
                self.say(f"epoch {row['epoch']:>3}  step {row['step']:>6}  {figures}")
        if done and not rows:
            task = self._bar.tasks[self._task]
            if task.fields["figures"] == "starting the stages":
                self._bar.update(self._task, figures="")


def _figures(row: Mapping[str, Any]) -> str:
    parts = []
    if row.get("loss") is not None:
        parts.append(f"loss {row['loss']:.4f}")
    if row.get("test_accuracy") is not None:
        parts.append(f"test accuracy {row['test_accuracy']:.1%}")
    parts.append(f"{row['samples_per_s']:.0f} samples/s")
    return "  ".join(parts)
