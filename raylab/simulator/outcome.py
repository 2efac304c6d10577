"""What a run under virtual time leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Applied", "Simulated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One message that was applied.

    Args:
        time_s: when.
        worker: of whom.
        number: of the task.
        staleness: in updates.
    """

    time_s: float
    worker: int
    number: int
    staleness: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What a run leaves behind.

    Args:
        rows: one a certificate, as a real run's, with virtual time_s.
        model: weights by name, as the server's rule has them.
        ended_by: tolerance, epochs or messages; asked: whoever watched had seen enough.
        trace: what was applied, in its order.
        deaths: workers that were lost.
        repeats: pushes that the server knew already.
    """

    rows: list[dict[str, Any]]
    model: dict[str, Tensor]
    ended_by: str
    trace: list[Applied]
    deaths: int
    repeats: int

    @property
    def weights(self) -> NDArray[Any]:
        """Return w, (dim,)."""
        found: NDArray[Any] = self.model["w"].numpy()
        return found

    @property
    def figures(self) -> dict[str, Any]:
        """The last row."""
        return self.rows[-1]
