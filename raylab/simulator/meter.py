"""What a row of a simulated run says beside what the server's loop says, as `ServerMeter` does."""

from __future__ import annotations

from typing import Any

from actors.units import Tensors

__all__ = ["VirtualMeter", "size_of"]


class VirtualMeter:
    """The counters of one run.

    Args:
        epoch_samples: n.
        workers: K.
    """

    def __init__(self, epoch_samples: int, workers: int) -> None:
        self.bytes = 0
        """Carried, both ways."""
        self.blocked_s = 0.0
        """That workers have waited for replies, all together."""
        self._epoch_samples = epoch_samples
        self._workers = workers
        self._before = (0.0, 0, 0.0)

    def stamp(self, row: dict[str, Any], now: float) -> None:
        """Complete a new row."""
        then, samples, blocked_s = self._before
        row |= {
            "time_s": now,
            "epoch": row["samples_seen"] / self._epoch_samples,
            "bytes": self.bytes,
            "blocked_s": (self.blocked_s - blocked_s) / self._workers,
            "samples_per_s": (row["samples_seen"] - samples) / (now - then) if now > then else 0.0,
            "workers": self._workers,
        }
        self._before = (now, row["samples_seen"], self.blocked_s)


def size_of(tensors: Tensors) -> int:
    """Return the bytes of what is there."""
    return sum(each.numel() * each.element_size() for each in tensors if each is not None)
