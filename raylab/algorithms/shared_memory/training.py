"""A run of AsySVRG in shared memory, as whoever runs it sees it: rows when they are due.

The solver certifies at every full gradient. A row of metrics is made of those that are due, and of
those after which it went back; what was counted in between is counted in the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import Any

from torch import Tensor

from raylab.algorithms.server.parts import as_tensor
from raylab.algorithms.shared_memory.asysvrg import SharedMemorySolver, figure

__all__ = ["SharedLimits", "SharedTraining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLimits:
    """When a run ends, at whichever comes first, and how often it tells where it stands.

    Args:
        samples: looked at, in all.
        messages: inner steps; None: any number.
        tolerance: largest `figure` that is good enough; 0: none is.
        certify_samples: samples between two rows, at least.
        figure: of the certificate; empty: the objective's.
    """

    samples: float | None = None
    messages: int | None = None
    tolerance: float = 0.0
    certify_samples: float = 0.0
    figure: str = ""


@dataclass(slots=True)
class _Told:
    """Where the run stood at its last row, and what was counted since."""

    due: float = 0.0
    samples: int = 0
    time_s: float = 0.0
    counts: list[int] = field(default_factory=list)


class SharedTraining:
    """One run, see `actors.server.solver_actor.Solver`.

    Args:
        solver: that computes.
        limits: of the run.
    """

    def __init__(self, solver: SharedMemorySolver, limits: SharedLimits) -> None:
        self.solver = solver
        self.ended_by = ""
        """Why the run has ended; empty before."""
        self._limits = replace(limits, figure=limits.figure or figure(solver.objective))
        self._told = _Told()

    @property
    def step(self) -> int:
        """Inner steps so far."""
        return self.solver.steps

    def run(self) -> Iterator[dict[str, Any] | None]:
        """Yield at every full gradient: a row of metrics if it is due, else None."""
        told = self._told
        for row in self.solver.run(self._limits):
            new = row["staleness_counts"]
            told.counts = [a + b for a, b in zip_longest(told.counts, new, fillvalue=0)]
            samples, time_s = row["samples_seen"], row["time_s"]
            self.ended_by = row.pop("ended_by", "")
            if not self.ended_by and "rewound" not in row and samples < told.due:
                yield None
                continue
            rate = {"samples_per_s": (samples - told.samples) / max(time_s - told.time_s, 1e-9)}
            # What is kept now is from before this row: who goes on from here makes it again.
            yield row | rate | _staleness(told.counts) | self._alone()
            told.due = samples + self._limits.certify_samples
            told.samples, told.time_s, told.counts = samples, time_s, []

    def weights(self) -> dict[str, Tensor]:
        """Return w by name."""
        return {"w": as_tensor(self.solver.w.copy())}

    def save(self) -> dict[str, Any]:
        """Return where the run stands, between two of `run`'s."""
        return {"solver": self.solver.save(), "told": asdict(self._told)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        self.solver.restore(saved["solver"])
        self._told = _Told(**saved["told"])

    def _alone(self) -> dict[str, Any]:
        """Return the columns of a server: nobody waits here."""
        return {"blocked_s": 0.0, "workers": self.solver.settings.threads}


def _staleness(counts: list[int]) -> dict[str, Any]:
    total = sum(counts)
    return {
        "staleness_mean": sum(s * c for s, c in enumerate(counts)) / total if total else 0.0,
        "staleness_max": max(len(counts) - 1, 0),
        "staleness_counts": counts,
    }
