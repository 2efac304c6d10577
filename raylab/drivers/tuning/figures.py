"""The objectives of a trial out of its run's rows, as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raylab.config.objectives import Objective

__all__ = ["Figures"]


class Figures:
    """Follows a run's rows.

    >>> loss = Objective(metric="test_loss", mode="min")
    >>> figures = Figures([loss])
    >>> figures.take({"epoch": None, "step": 5, "test_loss": None}), figures.reports
    (False, 0)
    >>> figures.take({"epoch": 1, "step": 10, "test_loss": 0.5}), figures.values
    (True, [0.5])
    >>> figures.settled  # a later row may have another loss
    False

    Args:
        objectives: of the search.
    """

    reports: int
    """Rows that said something of an objective."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives
        self._sums = [0.0] * len(objectives)
        self.values: list[float | None] = [None] * len(objectives)
        self._seen = [objective.until is None for objective in objectives]
        self.reports = 0

    def take(self, row: Mapping[str, Any]) -> bool:
        """Take a row in; return whether it is a report: one that has every column it is to have."""
        known = True
        for k, objective in enumerate(self._objectives):
            value = row.get(objective.metric)
            if objective.total and value is not None:
                self._sums[k] += value
                value = self._sums[k]
            if objective.until is not None:
                told = row.get(objective.until[0]) is not None
                self._seen[k] |= told
                known &= told
                if self.values[k] is not None or not _reached(objective, row):
                    continue
            known &= value is not None
            if value is not None:
                self.values[k] = float(value)
        self.reports += known
        return known

    @property
    def settled(self) -> bool:
        """Whether no further row can change a value: all are of what has been reached."""
        pairs = zip(self._objectives, self.values, strict=True)
        return all(each.until is not None and value is not None for each, value in pairs)

    def final(self) -> list[float] | None:
        """Return the values of a run that has ended; of what it has never come to, the worst.

        Returns:
            None: a value is missing, or no number, or no row had the column of an `until`.
        """
        found = []
        for objective, value, seen in zip(self._objectives, self.values, self._seen, strict=True):
            if value is None and objective.until is not None and seen:
                value = math.inf if objective.mode == "min" else -math.inf
            if value is None or math.isnan(value):
                return None
            found.append(value)
        return found

    def named(self) -> dict[str, float | None]:
        """Return the values by their names."""
        names = [objective.name for objective in self._objectives]
        return dict(zip(names, self.values, strict=True))


def _reached(objective: Objective, row: Mapping[str, Any]) -> bool:
    column, wanted = objective.until or ("", 0.0)
    value = row.get(column)
    if value is None:
        return False
    return bool(value >= wanted if objective.better == "max" else value <= wanted)
