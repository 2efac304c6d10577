"""Which checkpoint is under way, and which workers have not been told of it."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Saving"]


class Saving:
    """One checkpoint after another, each begun only once all workers have been told of the last."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._untold: set[int] = set()

    @property
    def open(self) -> bool:
        """Whether one is begun that not every worker has been told of."""
        return bool(self._untold)

    @property
    def told(self) -> int | None:
        """Step of the newest one if every worker has been told of it, and it was not given up."""
        return None if self._untold else self._step

    def begin(self, step: int, workers: Iterable[int]) -> None:
        """Begin the one of `step`, to be told to these workers."""
        self._step = step
        self._untold = set(workers)

    def tell(self, worker: int) -> int | None:
        """Return the step that this worker is told of now; None: there is nothing to tell."""
        if worker not in self._untold:
            return None
        self._untold.discard(worker)
        return self._step

    def give_up(self) -> None:
        """One that is open cannot become whole any more."""
        if self._untold:
            self._untold.clear()
            self._step = None
