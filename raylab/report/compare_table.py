"""The table at the end of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

__all__ = ["compare_table"]

_COLUMNS = (
    ("test accuracy", "test_accuracy", ".2%"),
    ("training loss", "loss", ",.4f"),
    ("greedy return", "greedy_return", ",.1f"),
    ("duality gap", "duality_gap", ".1e"),
    ("gradient norm", "gradient_norm", ".1e"),
    ("samples/s", "samples_per_s", ",.1f"),
    ("staleness", "staleness_mean", ",.2f"),
    ("time (s)", "time_s", ",.1f"),
)


def compare_table(title: str, runs: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row per method: means over its seeds, with their spread, against the first method.

    Args:
        title: of the table.
        runs: each with `method`, `seed`, `error` (None: it has finished), and, where it has, the
            figures `samples_per_s`, `staleness_mean` and `time_s`, of pipelines `test_accuracy` and
            `loss`, of parameter servers `duality_gap` and `gradient_norm`.
    """
    methods = list(dict.fromkeys(run["method"] for run in runs))
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.add_column("method")
    columns = [each for each in _COLUMNS if any(run.get(each[1]) is not None for run in runs)]
    for name, _, _ in columns:
        table.add_column(name, justify="right")
    table.add_column(f"× {methods[0]}", justify="right")
    failed = any(run["error"] for run in runs)
    if failed:
        table.add_column("failed")
    first = _values(runs, methods[0], "samples_per_s")
    for method in methods:
        speed = _values(runs, method, "samples_per_s")
        ratio = f"{statistics.mean(speed) / statistics.mean(first):.2f}" if speed and first else "—"
        table.add_row(
            method,
            *(_spread(_values(runs, method, key), form) for _, key, form in columns),
            ratio,
            *([_failures([run for run in runs if run["method"] == method])] if failed else []),
        )
    return table


def _values(runs: Sequence[Mapping[str, Any]], method: str, key: str) -> list[float]:
    mine = [run.get(key) for run in runs if run["method"] == method and not run["error"]]
    return [value for value in mine if isinstance(value, (int, float))]


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "—"
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


def _failures(runs: Sequence[Mapping[str, Any]]) -> str:
    failed = [run for run in runs if run["error"]]
    if not failed:
        return ""
    seeds = ", ".join(str(run["seed"]) for run in failed)
    reason = failed[0]["error"].partition("\n")[0]
    return escape(f"seed {seeds}: {reason}" if len(runs) > 1 else reason)
