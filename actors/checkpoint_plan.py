"""When a run is to be saved."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CheckpointPlan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """When a checkpoint is due. It changes no number, so that the time may decide.

    Args:
        every_batches: batches between two; 0: the time decides alone.
        every_s: seconds between two; 0: the count decides alone.
        window: only where this many batches have just been completed, or a multiple of it: where
            a synchronous pipeline is empty.
    """

    every_batches: int = 0
    every_s: float = 0.0
    window: int = 1

    @property
    def on(self) -> bool:
        """Whether there will be any."""
        return self.every_batches > 0 or self.every_s > 0

    def due(self, batches: int, since_batches: int, since_s: float, *, asked: bool = False) -> bool:
        """Tell whether to save with `batches` done, so many batches and seconds after the last.

        Args:
            batches: done.
            since_batches: since the last.
            since_s: since the last.
            asked: as soon as there can be one.
        """
        if since_batches < 1 or batches % self.window:
            return False
        counted = 0 < self.every_batches <= since_batches
        return asked or counted or 0 < self.every_s <= since_s
