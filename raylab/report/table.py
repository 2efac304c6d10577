"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

__all__ = ["final_table"]


def final_table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return the summary of a run as a table.

    Args:
        title: of the run.
        summary: with `metrics` (the last row), `samples_per_s`, `staleness_mean` and `time_s`; of
            averaging replicas with `blocked_share` instead of a staleness; of a parameter server
            with `ended_by` and `figure`, too; of a simulation with
            `clock` and `simulated_in_s`.
    """
    last = summary["metrics"]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("figure")
    table.add_column("value", justify="right")
    if summary.get("ended_by"):
        table.add_row("ended by", _end(summary))
    plays = last.get("greedy_return") is not None
    for name, key, form in (
        ("return, greedy policy", "greedy_return", ".1f"),
        ("return, last of training", "mean_return", ".1f"),
        ("episodes", "episodes", ",.0f"),
        ("duality gap", "duality_gap", ".3e"),
        ("gradient norm", "gradient_norm", ".3e"),
        ("primal value", "primal", ".8g"),
        ("training loss", "loss", ".4f"),
        ("training accuracy", "accuracy", ".2%"),
        ("test loss", "test_loss", ".4f"),
        ("test accuracy", "test_accuracy", ".2%"),
    ):
        if last.get(key) is not None and not (plays and key == "gradient_norm"):
            table.add_row(name, format(last[key], form))
    if summary.get("kind") == "parameter_server":
        if plays:
            table.add_row("steps of environments", format(last["samples_seen"], ","))
        else:
            table.add_row("epochs", format(summary["epochs"], ".1f"))
        table.add_row("messages", format(summary["messages"], ","))
    virtual = summary.get("clock") == "virtual"
    rate = "steps/s" if plays else "samples/s"
    table.add_row(f"{rate}, virtual" if virtual else rate, format(summary["samples_per_s"], ".1f"))
    if summary.get("blocked_share") is not None:
        table.add_row("waited for the network", format(summary["blocked_share"], ".1%"))
    else:
        table.add_row("mean staleness (updates)", format(summary["staleness_mean"], ".3f"))
    if virtual:
        table.add_row("virtual time (s)", format(summary["time_s"], ".4g"))
        table.add_row("time of the simulation (s)", format(summary["simulated_in_s"], ".1f"))
    else:
        table.add_row("time (s)", format(summary["time_s"], ".1f"))
    return table


def _end(summary: Mapping[str, Any]) -> str:
    """Say which end of a run came first."""
    if summary["figure"] == "shortfall":
        late = f"{summary['ended_by']}, before the return's target"
        return "the return's target" if summary["ended_by"] == "tolerance" else late
    words = {"duality_gap": "duality gap", "gradient_norm": "gradient norm"}
    if summary["ended_by"] != "tolerance":
        return f"{summary['ended_by']}, before the tolerance"
    return f"tolerance of the {words.get(summary['figure'], summary['figure'])}"
