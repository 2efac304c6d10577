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

_STARTING = "starting"


class Progress:
    """A bar over all batches or epochs of a run, with the last row's figures beside it.

    Where standard error is no terminal, a line an epoch is printed instead.

    Args:
        title: what is running.
        total: batches in all epochs, or epochs; None if it is not known.
        enabled: False shows nothing.
    """

    def __init__(self, title: str, total: int | None, *, enabled: bool = True) -> None:
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
        self._total = total
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=self._total, figures=_STARTING)
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
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, done: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show that `done` of the total have begun, and the newest row."""
        if self._task is None:
            return
        self._bar.update(self._task, completed=done)
        for row in rows:
            figures = _figures(row)
            self._bar.update(self._task, figures=figures)
            if row.get("epoch") is not None:
                self.say(f"epoch {_epoch(row['epoch'])}  step {row['step']:>6}  {figures}")
        if done and not rows:
            task = self._bar.tasks[self._task]
            if task.fields["figures"] == _STARTING:
                self._bar.update(self._task, figures="")


def _epoch(epoch: float) -> str:
    """Return whole epochs of a pipeline as they are, what a server has come to with a decimal."""
    return f"{epoch:>3}" if isinstance(epoch, int) else f"{epoch:>5.1f}"


def _figures(row: Mapping[str, Any]) -> str:
    parts = []
    unit = "samples"
    if row.get("greedy_return") is not None:
        parts.append(f"return {row['mean_return']:.1f}  greedy {row['greedy_return']:.1f}")
        unit = "steps"
    elif row.get("gradient_norm") is not None:
        gap = row.get("duality_gap")
        gradient = f"gradient {row['gradient_norm']:.2e}"
        parts.append(gradient if gap is None else f"gap {gap:.2e}")
        if row.get("rewound"):
            eta = f"eta {row['eta']:.2g}" if row.get("eta") is not None else "back"
            parts.append(f"{eta}, as {row['rewound']}")
    elif row.get("loss") is not None:
        parts.append(f"loss {row['loss']:.4f}")
    if row.get("test_accuracy") is not None:
        parts.append(f"test accuracy {row['test_accuracy']:.1%}")
    parts.append(f"{row['samples_per_s']:.0f} {unit}/s")
    return "  ".join(parts)
