"""Somebody who hears every row of a run as it comes, and may ask for its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["ASKED", "OnRow", "RowListener"]

OnRow = Callable[[Mapping[str, Any]], bool]
"""Takes a row of metrics; returns whether the run is to end now, and well."""

ASKED = "asked"
"""Why a run has stopped before its end, in its result.json."""


class RowListener:
    """What stands between a run and who hears its rows.

    A row that is made a second time, after a loss, is not told again, and after the run has been
    asked to end none is.

    Args:
        on_row: of the user; None: nobody listens.
    """

    def __init__(self, on_row: OnRow | None = None) -> None:
        self.asked = False
        """Whether the run is to end early."""
        self.on = on_row is not None
        """Whether anybody listens."""
        self._on_row = on_row
        self._heard = self._again = (-1, False)

    def begin(self) -> None:
        """The run begins, or goes on from a checkpoint: rows may come that have come before."""
        self._again = self._heard

    def hear(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell of new rows, in their order."""
        for row in rows:
            at = (row["step"], row["epoch"] is not None)
            if self._on_row is None or self.asked or at <= self._again:
                continue
            self._heard = max(self._heard, at)
            self.asked = bool(self._on_row(row))
