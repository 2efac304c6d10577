"""What a row of metrics says of time, bytes and waiting, beside what the server's loop says."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from actors.server.loop import ServerLoop
from actors.server.seat import Seat

__all__ = ["ServerMeter"]


class _Mark(NamedTuple):
    """Where the run stood at a row."""

    time_s: float
    samples: int
    waited_s: float


class ServerMeter:
    """The clock and the counters of one run; a run that goes on goes on with them.

    Args:
        epoch_samples: n.
    """

    def __init__(self, epoch_samples: int) -> None:
        self._epoch_samples = epoch_samples
        self._started = time.perf_counter()
        self._bytes = 0
        """Of links that are closed."""
        self._last = _Mark(0.0, 0, 0.0)

    def save(self, seats: Collection[Seat]) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {"ran_s": self._ran_s(), "bytes": self.carried(seats)}

    def restore(self, saved: Mapping[str, Any], samples: int) -> None:
        """Go on from what `save` returned, with so many samples looked at."""
        self._started -= saved["ran_s"]
        self._bytes = saved["bytes"]
        self._last = _Mark(self._ran_s(), samples, 0.0)

    def leaves(self, seat: Seat) -> None:
        """A worker's links are about to be closed."""
        self._bytes += seat.carried_bytes

    def row(
        self, row: Mapping[str, Any], seats: Collection[Seat], loop: ServerLoop
    ) -> dict[str, Any]:
        """Return a row of the loop with what is known here: totals, and rates since the last."""
        now = _Mark(self._ran_s(), loop.state.samples, sum(seat.waited_s for seat in seats))
        last, self._last = self._last, now
        return {
            "epoch": loop.state.samples / self._epoch_samples,
            **row,
            "time_s": now.time_s,
            "bytes": self.carried(seats),
            "samples_per_s": (now.samples - last.samples) / max(now.time_s - last.time_s, 1e-9),
            # A worker that was replaced counts its waiting anew.
            "blocked_s": max(0.0, now.waited_s - last.waited_s) / max(1, len(seats)),
            "workers": len(loop.workers),
        }

    def carried(self, seats: Collection[Seat]) -> int:
        """Return the bytes of tensors that have passed, through these links and closed ones."""
        return self._bytes + sum(seat.carried_bytes for seat in seats)

    def _ran_s(self) -> float:
        return time.perf_counter() - self._started
