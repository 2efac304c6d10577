"""Writes an actor's parts of checkpoints beside its computation.

One thread, one part at a time: an actor that comes to its next checkpoint while the last one is
still being written waits for it, so that memory holds two parts at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

__all__ = ["Keeping", "PartWriter", "WritePart", "resumed"]

WritePart = Callable[[int, str, Mapping[str, Any]], Any]
"""(step, name, content) -> whatever whoever commits the checkpoint wants to know of the part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How one actor keeps its parts of checkpoints, and where it goes on.

    Args:
        name: of its parts.
        write: (step, name, content) -> what the driver wants to know of a part.
        resume: returns the part to go on from; None: from the beginning.
    """

    name: str
    write: WritePart
    resume: Callable[[], Mapping[str, Any]] | None = None


def resumed(keeping: Keeping | None) -> Mapping[str, Any] | None:
    """Return the part to go on from; None: from the beginning, or nothing is kept."""
    return None if keeping is None or keeping.resume is None else keeping.resume()


class PartWriter:
    """Write parts through `write`, one after another, in a thread.

    Args:
        name: of the parts.
        write: puts one part where it belongs.
        written: takes the step and what `write` returned, in the thread.
    """

    def __init__(self, name: str, write: WritePart, written: Callable[[int, Any], None]) -> None:
        self._name = name
        self._write = write
        self._written = written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def __call__(self, step: int, content: dict[str, Any]) -> None:
        """Begin to write a part, once the one before is there.

        Raises:
            Exception: what writing the one before has raised.
        """
        self.settle()
        self._last = self._thread.submit(self._put, step, content)

    def settle(self) -> None:
        """Wait until everything is written, and raise what went wrong."""
        if self._last is not None:
            self._last.result()
        self._last = None

    def close(self) -> None:
        """End the thread; what has begun is written to its end."""
        self._thread.shutdown()

    def _put(self, step: int, content: dict[str, Any]) -> None:
        self._written(step, self._write(step, self._name, content))
