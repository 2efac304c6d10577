"""The plan of averaging as a person reads it, and DASGD's Table II."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from raylab.report.plan_parts import bytes_text, plan_table, time_text

__all__ = ["averaging_tables", "published_tables"]

_METHODS = {"minibatch_sgd": "mini-batch SGD", "local_sgd": "Local SGD", "dasgd": "DaSGD"}
_PRINTED_S = 0.02e-3
"""The paper prints hundredths of a millisecond, cut off and not rounded."""
_CLUSTERS = {"titan_x": "TITAN X, 20 Gbit/s", "k80": "K80, 10 Gbit/s"}


def averaging_tables(plan: Mapping[str, Any]) -> list[RenderableType]:
    """Return what is printed for a plan, one thing below another.

    Args:
        plan: of `raylab.drivers.averaging.plan`.
    """
    return [_head(plan), _averages(plan), _methods(plan), _choice(plan)]


def _head(plan: Mapping[str, Any]) -> Text:
    name = plan["model"] or "a model"
    lines = [
        f": {plan['parameters']:,} parameters ({plan['parameters_of']}), "
        f"{bytes_text(plan['bytes'])} an average",
        f"\n{plan['workers']} workers, {_network(plan)}",
        f"\na step of {plan['local_batch']} samples takes {time_text(plan['step_s'])}"
        + _timed(plan, "step_s"),
    ]
    return Text.assemble((name, "bold"), *lines)


def _network(plan: Mapping[str, Any]) -> str:
    network = plan["network"]
    if network is None:
        timed = plan["measured"]
        scaled = "" if timed["workers"] == plan["workers"] else ", scaled as a ring"
        return (
            f"an average measured between {timed['workers']} on "
            f"{timed['nodes']} node{'s' if timed['nodes'] > 1 else ''} "
            f"by {timed['backend']}: {time_text(timed['all_reduce_s'])}{scaled}"
        )
    parts = [f"{network['workers_per_node']} on each node"]
    if network["ethernet_gbit_s"] is not None:
        parts.append(f"{network['ethernet_gbit_s']:g} Gbit/s between nodes")
    if network["pcie_gbyte_s"] is not None:
        parts.append(f"{network['pcie_gbyte_s']:g} GB/s within")
    if network["latency_s"]:
        parts.append(f"{time_text(network['latency_s'])} a message")
    return ", ".join(parts)


def _timed(plan: Mapping[str, Any], name: str) -> str:
    measured = plan["measured"]
    if measured is None or measured[name] is None:
        return ""
    return f", measured on {measured['workers']} workers at once"


def _averages(plan: Mapping[str, Any]) -> Table:
    columns = ["", "t_c", "d", "tau", *(f"of {name}" for name in _METHODS.values())]
    table = plan_table("an average, and its share of the time", columns, 1)
    for row in plan["averages"]:
        decides = row["algorithm"] == plan["choice"]["algorithm"]
        table.add_row(
            row["algorithm"] + (" *" if decides and len(plan["averages"]) > 1 else ""),
            time_text(row["all_reduce_s"]),
            str(row["delay"]),
            str(row["tau"]),
            *(f"{row['share'][method]:.1%}" for method in _METHODS),
            style="bold" if decides else None,
        )
    if len(plan["averages"]) > 1:
        table.caption = "* decides below; d hides t_c behind d local steps"
        table.caption_justify = "left"
    return table


def _methods(plan: Mapping[str, Any]) -> Table:
    columns = ["", "tau", "d", "blocked a step", "share", "epoch", "samples/s"]
    table = plan_table(f"an epoch of {plan['samples']:,} samples", columns, 1)
    for row in plan["methods"]:
        table.add_row(
            _METHODS[row["method"]],
            str(row["tau"]),
            str(row["delay"]),
            time_text(row["blocked_s"]) if row["blocked_s"] else "0",
            f"{row['share']:.1%}",
            _duration(row["epoch_s"]),
            f"{row['samples_per_s']:,.0f}",
        )
    return table


def _choice(plan: Mapping[str, Any]) -> Text:
    choice = plan["choice"]
    why = (
        "DaSGD never waits for the network"
        if choice["hidden"]
        else "DaSGD waits for what d steps do not hide: a larger tau allows a larger delay"
    )
    period = f"tau={choice['tau']} delay={choice['delay']}"
    return Text.assemble("choose ", (period, "bold"), f": {why}")


def published_tables(published: Mapping[str, Any]) -> list[RenderableType]:
    """Return what is printed for DASGD's Table II, ours beside the paper's.

    Args:
        published: of `raylab.planner.published_table.paper_table`.
    """
    parts: list[RenderableType] = [
        Text.assemble(
            ("DASGD, Table II", "bold"),
            ": 256 workers on 32 nodes, 64 samples a step; times in ms, computed anew; in "
            "brackets what the paper prints where it is not the same within 0.02 ms",
        )
    ]
    for cluster, title in _CLUSTERS.items():
        columns = ["", "parameters", "t_p", "Tree", "Butterfly", "ring", "d", "tau"]
        table = plan_table(title, columns, 1)
        table.padding = (0, 0, 0, 1)  # narrow, so that it fits 80 columns
        for row in published["rows"]:
            if row["cluster"] == cluster:
                table.add_row(*_published_row(row))
        parts.append(table)
    shares = published["shares"]
    said = ", ".join(
        f"{shares[method]:.1%} of {name} ({shares['paper'][method]:.1%} in the paper)"
        for method, name in _METHODS.items()
    )
    parts.append(Text(f"communication of ResNet-50, TITAN X, Tree, tau = {shares['tau']}: {said}"))
    return parts


def _published_row(row: Mapping[str, Any]) -> list[str]:
    paper = row["paper"]

    def beside(name: str) -> str:
        ours, theirs = row[name], paper[name]
        if name in ("delay", "tau"):
            return str(ours) if ours == theirs else f"{ours} [{theirs}]"
        same = abs(ours - theirs) <= _PRINTED_S
        return _ms(ours) if same else f"{_ms(ours)} [{_ms(theirs)}]"

    return [
        row["title"],
        f"{row['parameters']:,}",
        _ms(row["step_s"]),
        beside("tree_s"),
        beside("butterfly_s"),
        _ms(row["ring_s"]),
        beside("delay"),
        beside("tau"),
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _duration(seconds: float) -> str:
    """Return 5025 as 1 h 24 min."""
    if seconds < 120:
        return time_text(seconds)
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
