"""The plan of a pipeline as a person reads it: tables of stages, links and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from raylab.report.plan_parts import bytes_text, count_text, plan_table, time_text

__all__ = ["plan_tables"]

_LOCAL = ("dni", "dgl")
"""Methods with networks of their own beside the stages, whose time is not in the prediction."""


def plan_tables(plan: Mapping[str, Any]) -> list[RenderableType]:
    """Return what is printed for a plan of `PipelineTrainer.plan`, one thing below another.

    Args:
        plan: with `model` and `data` added.
    """
    stages = plan["stages"]
    cut = {
        "counted": "counted work made even",
        "measured": "measured times made even",
        "memory": "memory made even",
    }[plan["balance"]]
    head = Text.assemble(
        (f"{plan['model']} on {plan['data']}", "bold"),
        f": {sum(len(stage['blocks']) for stage in stages)} blocks, {len(stages)} stages, {cut}, "
        f"{plan['samples_per_batch']} samples a batch",
    )
    parts: list[RenderableType] = [head, _stages(plan)]
    if plan["links"]:
        parts.append(_links(plan))
    return [*parts, _methods(plan), _choice(plan)]


def _stages(plan: Mapping[str, Any]) -> Table:
    times = ["forward", "backward"] if plan["measured"] else []
    share = "time" if plan["measured"] else "work"
    table = plan_table("stages", ["", "blocks", share, "parameters", *times, "memory"], 2)
    for stage in plan["stages"]:
        row = [
            str(stage["stage"]),
            _blocks(stage["blocks"]),
            f"{stage['share']:.0%}",
            count_text(stage["parameters"]),
        ]
        if times:
            row += [time_text(stage["forward_s"]), time_text(stage["backward_s"])]
        table.add_row(*row, bytes_text(stage["bytes"]))
    return table


def _links(plan: Mapping[str, Any]) -> Table:
    measured = plan["measured"]
    columns = ["", "features and gradients, each"]
    table = plan_table("links", [*columns, *(["one way", "handling"] if measured else [])], 1)
    for link in plan["links"]:
        row = [f"{link['link']} – {link['link'] + 1}", bytes_text(link["bytes"])]
        if measured:
            row += [time_text(link["message_s"]), time_text(link["handling_s"])]
        table.add_row(*row)
    return table


def _methods(plan: Mapping[str, Any]) -> Table:
    measured = plan["measured"]
    speed = ["samples/s"] if measured else []
    columns = ["", "link delays", *speed, "over bp", "staleness", "memory"]
    title = "methods, predicted" if measured else "methods, at best: messages free, a core a stage"
    table = plan_table(title, columns, 2)
    for row in plan["methods"]:
        chosen = row["method"] == plan["choice"]["method"]
        name = row["method"] + (" *" if row["asked"] else "")
        cells = [name, " ".join(str(d) for d in row["delays"] or [])]
        if measured:
            cells.append(f"{row['samples_per_s']:.0f}")
        cells += [f"{row['speed_up']:.2f}×", f"{row['staleness']:.2f}", bytes_text(row["bytes"])]
        table.add_row(*cells, style="bold" if chosen else None)
    notes = ["* as asked for; memory of the fullest stage"]
    if any(row["method"] in _LOCAL for row in plan["methods"]):
        notes.append(f"{' and '.join(_LOCAL)} without their own small networks, and not compared")
    table.caption = "; ".join(notes)
    table.caption_justify = "left"
    return table


def _choice(plan: Mapping[str, Any]) -> Text:
    choice = plan["choice"]
    return Text.assemble("choose ", (choice["method"], "bold"), f": {choice['why']}")


def _blocks(names: Sequence[str]) -> str:
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)})"
