"""What a server knows of its workers: who is there, and what each one has under way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from actors.server.messages import Push

__all__ = ["Entry", "Roll"]


@dataclass(slots=True)
class Entry:
    """What the server knows of one worker."""

    number: int = 0
    """Of the task that it has, or will have next."""
    version: int = 0
    """Updates behind the w that it was given with the task."""
    phase: int = -1
    """That it has the opening of."""
    busy: bool = False
    away: bool = False
    """Whether it is lost, and another process will come in its place."""
    step: int | None = None
    """Of the checkpoint that the process in place of a lost one begins with."""
    held: Push | None = None
    """What it has pushed, until that may be applied."""
    rewinds: bool = False
    """Whether its next reply tells it to go back to the last good certificate."""


class Roll:
    """The workers by number."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._numbers: dict[int, int] = {}
        """Of the next tasks of workers that are not there now."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[int]:
        """Yield the workers, ascending."""
        return iter(sorted(self._entries))

    def __getitem__(self, worker: int) -> Entry:
        """Return what is known of a worker, who is taken in if need be."""
        entry = self._entries.get(worker)
        if entry is None:
            entry = self._entries[worker] = Entry(number=self._numbers.get(worker, 0))
        return entry

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not any(entry.busy or entry.held for entry in self._entries.values())

    @property
    def computing(self) -> bool:
        """Whether anybody has a task."""
        return any(entry.busy for entry in self._entries.values())

    def present(self) -> list[int]:
        """Return those that are not lost, ascending."""
        return [worker for worker in self if not self._entries[worker].away]

    def waiting(self) -> list[int]:
        """Return those whose push is held, ascending."""
        found = [worker for worker, entry in self._entries.items() if entry.held is not None]
        found.sort()
        return found

    def under_way(self, besides: int) -> Iterator[int]:
        """Yield the versions of what the others compute, or have pushed."""
        for worker, entry in self._entries.items():
            if worker != besides and (entry.busy or entry.held is not None):
                yield entry.version

    def renew(self, workers: Iterable[int]) -> None:
        """Begin anew with these, who go on counting their tasks."""
        self._numbers = self.numbers()
        self._entries = {worker: Entry(number=self._numbers.get(worker, 0)) for worker in workers}

    def numbers(self) -> dict[int, int]:
        """Return the number of each worker's next task, of those that were there, too."""
        return self._numbers | {worker: entry.number for worker, entry in self._entries.items()}

    def restore(self, numbers: Mapping[int, int]) -> None:
        """Go on counting from what `numbers` returned, before anybody is there."""
        self._numbers = dict(numbers)
