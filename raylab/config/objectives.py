"""What a search looks for: columns of a run's rows.

objectives: [{metric: test_loss}]
objectives: [{metric: test_accuracy}, {metric: time_s, until: {test_accuracy: 0.9}}]
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raylab.documents import shown
from raylab.errors import ConfigError

__all__ = ["COLUMNS", "Objective", "objectives_of"]

Mode = Literal["min", "max"]

_TIMES: dict[str, Mode] = {"time_s": "min", "bytes": "min", "messages": "min", "blocked_s": "min"}
_NETWORK: dict[str, Mode] = {
    "test_loss": "min",
    "test_accuracy": "max",
    "loss": "min",
    "accuracy": "max",
    "samples_per_s": "max",
    **_TIMES,
}
COLUMNS: Mapping[str, Mapping[str, Mode]] = {
    "pipeline": {**_NETWORK, "staleness_mean": "min"},
    "averaging": {**_NETWORK, "consensus_distance": "min"},
    "parameter_server": {
        "duality_gap": "min",
        "gradient_norm": "min",
        "primal": "min",
        "loss": "min",
        "accuracy": "max",
        "greedy_return": "max",
        "mean_return": "max",
        "samples_per_s": "max",
        "staleness_mean": "min",
        **_TIMES,
    },
}
"""By family, the columns that can be an objective, and which way is better."""

_NEVER_NEGATIVE = (*_TIMES, "duality_gap", "gradient_norm", "samples_per_s", "staleness_mean")
_PER_ROW = {
    "pipeline": ("bytes", "messages", "blocked_s"),
    "averaging": ("bytes", "blocked_s"),
    "parameter_server": ("blocked_s",),
}
"""Columns that count since the row before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One figure of a run.

    Args:
        metric: column of its rows.
        mode: which way is better.
        until: column and value: the figure is that of the first row whose column has come to this
            value; None: of the last row.
        better: of that column, which way is better.
        total: the column counts since the row before, and is added up.
    """

    metric: str
    mode: Mode
    until: tuple[str, float] | None = None
    better: Mode = "max"
    total: bool = False

    @property
    def name(self) -> str:
        """A word for it: test_loss, or time_s_to_test_accuracy_0.9."""
        if self.until is None:
            return self.metric
        return f"{self.metric}_to_{self.until[0]}_{self.until[1]:g}"

    def plain(self) -> dict[str, Any]:
        """Return it as YAML has it."""
        until = {} if self.until is None else {"until": dict([self.until])}
        return {"metric": self.metric, "mode": self.mode, **until}


def objectives_of(given: Any, family: str) -> tuple[Objective, ...]:
    """Return the objectives of a search.

    Args:
        given: as YAML has them.
        family: of the runs.

    Raises:
        ConfigError: one is none of these runs', or there are two of a name.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ConfigError(
            "`objectives` must be a list, such as [{metric: "
            f"{next(iter(COLUMNS[family]))}}}], but got {shown(given)}"
        )
    found = tuple(_objective(each, family) for each in given)
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"objectives must differ, but got {', '.join(names)}")
    return found


def _objective(given: Any, family: str) -> Objective:
    if not isinstance(given, Mapping) or not set(given) <= {"metric", "mode", "until"}:
        raise ConfigError(
            "an objective must be {metric: COLUMN}, with mode: min or max and until: {COLUMN: "
            f"VALUE}} if need be, but got {shown(given)}"
        )
    metric = given.get("metric")
    mode = given.get("mode") or _mode(metric, family)
    if mode not in ("min", "max"):
        raise ConfigError(f"`mode` of an objective must be min or max, but got {shown(mode)}")
    _mode(metric, family)
    until = given.get("until")
    if until is None:
        return Objective(metric=str(metric), mode=mode, total=metric in _PER_ROW[family])
    if not isinstance(until, Mapping) or len(until) != 1:
        raise ConfigError(
            "`until` of an objective must be a column and its value, such as {test_accuracy: 0.9}, "
            f"but got {shown(until)}"
        )
    column, value = next(iter(until.items()))
    better = _mode(column, family)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"`until.{column}` must be a number, but got {shown(value)}")
    _check_reachable(str(column), value, family)
    return Objective(
        metric=str(metric),
        mode=mode,
        until=(str(column), float(value)),
        better=better,
        total=metric in _PER_ROW[family],
    )


def _check_reachable(column: str, value: float, family: str) -> None:
    """Refuse what no run comes to, so that no search looks for it.

    Raises:
        ConfigError: the column never has this value.
    """
    if not math.isfinite(value):
        raise ConfigError(f"`until.{column}` must be finite, but got {shown(value)}")
    if column.endswith("accuracy") and not 0 <= value <= 1:
        raise ConfigError(
            f"`until.{column}` must be a share from 0 to 1, but got {shown(value)}: say 0.9 for 90%"
        )
    # A server's problem may have a loss below 0.
    if value < 0 and (column in _NEVER_NEGATIVE or family != "parameter_server"):
        raise ConfigError(
            f"`until.{column}` must be >= 0, as {column} is never less, but got {shown(value)}"
        )


def _mode(metric: Any, family: str) -> Mode:
    columns = COLUMNS[family]
    if metric not in columns:
        close = difflib.get_close_matches(str(metric), columns, n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"`metric` of an objective must be one of {', '.join(columns)}, but got "
            f"{shown(metric)}{hint}"
        )
    return columns[metric]
