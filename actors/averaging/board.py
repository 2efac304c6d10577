"""What the workers of a run tell its driver while it waits for them, and what it asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Board", "open_board"]


class Board:
    """Notes in the order in which they came; it lives as long as the run, whatever workers do."""

    def __init__(self) -> None:
        self._notes: list[tuple[str, Any]] = []
        self._failure: Exception | None = None
        self._outcome: dict[str, Any] = {}
        self._asked = self._leaves = False

    def put(self, kind: str, note: Any) -> None:
        """Take a note."""
        self._notes.append((kind, note))

    def take(self) -> Sequence[tuple[str, Any]]:
        """Return the notes that have come since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def end(self) -> None:
        """Ask the workers to end the run."""
        self._asked = True

    def asked(self) -> bool:
        """Return whether the run is to end."""
        return self._asked

    def leave(self) -> None:
        """Ask the workers for a checkpoint, and to go: the run is resumed from there."""
        self._leaves = True

    def leaves(self) -> bool:
        """Return whether the workers are to save and go."""
        return self._leaves

    def fail(self, failure: Exception) -> None:
        """Take why the run is not to be tried again; the first reason stays."""
        self._failure = self._failure or failure

    def finish(self, outcome: dict[str, Any]) -> None:
        """Take what the run has come to; Ray Train returns no tensors."""
        self._outcome = outcome

    def outcome(self) -> dict[str, Any]:
        """Return what the run has come to, {}: nothing yet."""
        return self._outcome

    def failure(self) -> Exception | None:
        """Return why the run is not to be tried again, None: it may be."""
        return self._failure


_BoardActor: Any = ray.remote(Board)


def open_board() -> Any:
    """Start a board beside the driver and return its handle; it ends with its last handle.

    Elsewhere it would be lost with its node.
    """
    here = ray.get_runtime_context().get_node_id()
    beside = NodeAffinitySchedulingStrategy(here, soft=False)
    return _BoardActor.options(num_cpus=0, scheduling_strategy=beside).remote()
