"""What the tables of plans are made of: their look, and numbers with units."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

__all__ = ["bytes_text", "count_text", "plan_table", "time_text"]


def plan_table(title: str, columns: Sequence[str], left: int) -> Table:
    """Make an empty table.

    Args:
        title: above it.
        columns: their names.
        left: how many of them, from the left, hold text and not numbers.
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for position, name in enumerate(columns):
        if position < left:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def count_text(number: int) -> str:
    """Return 11200000 as 11.2 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def bytes_text(number: float) -> str:
    """Return 102000000 as 102 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def time_text(seconds: float) -> str:
    """Return 0.0123 as 12.3 ms."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
