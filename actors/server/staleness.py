"""How stale a message may be, and how stale they were.

Staleness is the updates between the w that a message was computed at and its application. It is
bounded in one of two ways. "refresh": a message that is too stale is refused, and its worker
computes it anew. "wait": a message is held while applying it would make another one, which is
still computed, too stale. Let the versions of the messages under way be v_0 <= v_1 <= …, and t
the updates so far; all can still be applied in time if t + i - v_i <= bound for every i, and it
is enough to hold what would break that. K workers at one w need a bound of K - 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Bound", "StalenessCounts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How stale a message may be.

    Args:
        updates: Delta; None: any.
        late: what happens to a message that would be later, see the module.
    """

    updates: int | None = None
    late: Literal["wait", "refresh"] = "wait"

    def refuses(self, staleness: int) -> bool:
        """Tell whether a message is to be computed anew."""
        return self.updates is not None and self.late == "refresh" and staleness > self.updates

    def in_time(self, version: int, under_way: Iterable[int]) -> bool:
        """Tell whether the others can still be applied in time after one more update.

        Args:
            version: t, updates so far.
            under_way: the versions of the other messages that are computed or held.
        """
        most = self.updates
        if most is None or self.late != "wait":
            return True
        return all(version + 1 + i - v <= most for i, v in enumerate(sorted(under_way)))


class StalenessCounts:
    """How many messages had which staleness, since the last row."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, staleness: int) -> None:
        """Count one message."""
        self._counts[staleness] = self._counts.get(staleness, 0) + 1

    def taken(self) -> dict[str, Any]:
        """Return the columns of a row, and begin anew."""
        counts, self._counts = self._counts, {}
        total = sum(counts.values())
        most = max(counts, default=0)
        return {
            "staleness_mean": sum(s * c for s, c in counts.items()) / total if total else 0.0,
            "staleness_max": most,
            "staleness_counts": [counts.get(s, 0) for s in range(most + 1)] if counts else [],
        }
