"""A search as it goes on, on standard error, and the table at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

__all__ = ["TrialLine", "TuningView", "tuning_table"]

_REFRESH_HZ = 4
_RECENT = 8
"""Ended trials that stand in the live table."""


@dataclass(slots=True, kw_only=True)
class TrialLine:
    """What is shown of a trial.

    Args:
        number: in the study.
        params: what was chosen.
        state: waiting, running, or how it has ended.
        epoch: of its last report.
        values: of the objectives, by name.
    """

    number: int
    params: Mapping[str, Any]
    state: str = "waiting"
    epoch: float | None = None
    values: dict[str, float | None] = field(default_factory=dict)


class TuningView:
    """The trials of a search, as a context: a table that lives, or where standard error is no
    terminal, a line for each trial that has ended.

    Args:
        title: of the search.
        objectives: their names.
        trials: of the budget; None: any number.
        enabled: False shows nothing.
    """

    def __init__(
        self, title: str, objectives: Sequence[str], trials: int | None, *, enabled: bool = True
    ) -> None:
        self._console = Console(stderr=True, quiet=not enabled)
        self._title = title
        self._objectives = objectives
        self._trials = trials
        self._lines: dict[int, TrialLine] = {}
        self._best = ""
        self._ended = 0
        self._live: Live | None = None
        if enabled and self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=_REFRESH_HZ, get_renderable=self._table,
                transient=True,
            )  # fmt: skip

    def __enter__(self) -> TuningView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line, above the table."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, line: TrialLine) -> None:
        """Show what a trial has come to."""
        self._lines[line.number] = line

    def ended(self, line: TrialLine, ended: int, best: str) -> None:
        """Show that a trial has ended.

        Args:
            line: of the trial.
            ended: trials that have.
            best: of all, in words.
        """
        self.show(line)
        self._ended, self._best = ended, best
        if self._live is None:
            of = "" if self._trials is None else f"/{self._trials}"
            self.say(f"[{ended}{of}] trial {line.number} {line.state}: {_told(line)}  best: {best}")

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("trial", "state", "epoch", *self._objectives):
            table.add_column(name, justify="left" if name == "state" else "right")
        table.add_column("chosen")
        live = [line for line in self._lines.values() if line.state in ("waiting", "running")]
        gone = [line for line in self._lines.values() if line.state not in ("waiting", "running")]
        for line in [*gone[-_RECENT:], *live]:
            table.add_row(
                str(line.number),
                line.state,
                "" if line.epoch is None else f"{line.epoch:g}",
                *(_number(line.values.get(name)) for name in self._objectives),
                Text(_params(line.params), overflow="ellipsis", no_wrap=True),
                style="dim" if line in gone else None,
            )
        of = "" if self._trials is None else f" of {self._trials}"
        head = Text(f"{self._title}: {self._ended}{of} trials, best: {self._best or 'none yet'}")
        head.stylize("bold", 0, len(self._title))
        return Group(head, table)


def tuning_table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return what a search has come to.

    Args:
        title: of the table.
        summary: the content of its result.json.
    """
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.add_column("figure")
    table.add_column("value", justify="right")
    states = summary["trials"]
    table.add_row("trials", ", ".join(f"{count} {name}" for name, count in states.items() if count))
    for each in summary["front"] or []:
        values = ", ".join(f"{name} {_number(v)}" for name, v in each["values"].items())
        table.add_row(f"trial {each['number']}", values)
    for key, value in (summary["best"] or {"params": {}})["params"].items():
        table.add_row(f"best {escape(key)}", escape(_value(value)))
    if summary["start_share"] is not None:
        table.add_row("start-up, share of the trials' time", f"{summary['start_share']:.0%}")
    table.add_row("time (s)", f"{summary['time_s']:,.1f}")
    return table


def _told(line: TrialLine) -> str:
    values = "  ".join(f"{name} {_number(value)}" for name, value in line.values.items())
    return f"{values}  {_params(line.params)}" if values else _params(line.params)


def _params(params: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in params.items())


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "—"
