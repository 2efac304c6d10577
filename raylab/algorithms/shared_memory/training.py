"""A run of AsySVRG in shared memory, as whoever runs it sees it: rows when they are due.

The solver certifies at every full gradient. A row of metrics is made of those that are due, and of
those after which it went back; what was counted in between is counted in the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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

    @property
    def step(self) -> int:
        """Inner steps so far."""
        return self.solver.steps

    def run(self) -> Iterator[dict[str, Any] | None]:
        """Yield at every full gradient: a row of metrics if it is due, else None."""
        due, last_samples, last_s = 0.0, None, 0.0
        counts: list[int] = []
        for row in self.solver.run(self._limits):
            new = row["staleness_counts"]
            counts = [a + b for a, b in zip_longest(counts, new, fillvalue=0)]
            samples, time_s = row["samples_seen"], row["time_s"]
            self.ended_by = row.pop("ended_by", "")
            if not self.ended_by and "rewound" not in row and samples < due:
                yield None
                continue
            seen = 0 if last_samples is None else samples - last_samples
            rate = {"samples_per_s": seen / max(time_s - last_s, 1e-9)}
            yield row | rate | _staleness(counts) | self._alone()
            due, last_samples, last_s = samples + self._limits.certify_samples, samples, time_s
            counts = []

    def weights(self) -> dict[str, Tensor]:
        """Return w by name."""
        return {"w": as_tensor(self.solver.w.copy())}

    def save(self) -> dict[str, Any]:
        """Return where the run stands, between two of `run`'s."""
        return self.solver.save()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        self.solver.restore(saved)

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
