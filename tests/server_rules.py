"""A server and its workers that only count: whatever is lost or applied twice shows as a number.

Worker k draws a vector for each task and adds it to its own sum once it is told that the server has
applied it; the server keeps, for every worker, the sum of what it applied. The relation between the
two is that of (3.3) of HUO: at every certificate both sums are the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["CountPhase", "CountingServer", "CountingWorker", "Late", "draw"]


@dataclass(frozen=True, kw_only=True)
class CountPhase:
    number: int
    kind: str = "add"
    gather: bool = False
    messages: int | None = None
    pieces: int = 1


@dataclass(kw_only=True)
class CountPart:
    values: dict[str, float]
    tensors: dict[str, Tensor]


@dataclass
class Late:
    """Makes workers slow, and lets them die at some messages."""

    seconds: dict[int, float] = field(default_factory=dict)
    deaths: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def delay_s(self, worker: int, message: int, compute_s: float) -> float:
        return self.seconds.get(worker, 0.0)

    def dies(self, worker: int, message: int) -> bool:
        return message in self.deaths.get(worker, ())


def draw(worker: int, number: int, dim: int) -> Tensor:
    """Whole numbers, so that sums do not depend on their order; few of them are not zero."""
    generator = torch.Generator().manual_seed(1000 * worker + number)
    found = torch.zeros(dim, dtype=torch.float64)
    found[torch.randperm(dim, generator=generator)[:3]] = 1.0 + number
    return found


class CountingServer:
    def __init__(
        self,
        workers: int,
        dim: int = 100,
        *,
        gather: bool = False,
        per_phase: int | None = None,
        pieces: int = 1,
        bad: tuple[int, ...] = (),
    ) -> None:
        self.sums = {worker: torch.zeros(dim, dtype=torch.float64) for worker in range(workers)}
        self.start = self._copied()
        self.kept_sums: dict[tuple[int, int], Tensor] = {}
        self.marks: dict[tuple[int, int], Tensor] = {}
        self.applied: list[tuple[int, int]] = []
        self.bad = list(bad)
        self.certificates = 0
        self._options = {"gather": gather, "messages": per_phase, "pieces": pieces}
        self._phase = 0

    def _copied(self) -> dict[int, Tensor]:
        return {worker: each.clone() for worker, each in self.sums.items()}

    def phase(self) -> CountPhase:
        return CountPhase(number=self._phase, **self._options)

    def opening(self) -> tuple[Tensor | None, ...]:
        return (torch.full((2,), float(self._phase)), None)

    def answer(self, worker: int) -> tuple[Tensor, ...]:
        total = torch.zeros_like(self.sums[min(self.sums)])
        return (sum(self.sums.values(), total),)

    def apply(self, worker: int, message: tuple[Tensor, ...], staleness: int) -> None:
        vector, number = message
        self.sums[worker] = self.sums[worker] + vector
        self.applied.append((worker, int(number)))

    def changed(self) -> None:
        """Any coordinate may have changed."""

    def close_phase(self) -> None:
        self._phase += 1

    def certify(self, parts: Mapping[int, Any], answer: tuple[Tensor, ...]) -> dict[str, float]:
        # Messages in flight are applied here and not yet committed there, or newer than the proof.
        gaps = [
            float((self.marks[worker, self.certificates + 1] - part.tensors["sum"]).abs().max())
            for worker, part in parts.items()
        ]
        self.certificates += 1
        return {
            "relation": max(gaps),
            "left": 1000.0 - sum(part.values["messages"] for part in parts.values()),
        }

    def judge(self, figures: Mapping[str, float]) -> str | None:
        return "it was told to be bad" if self.certificates in self.bad else None

    def mark(self, worker: int, number: int) -> None:
        self.marks[worker, number] = self.sums[worker]

    def rewind(self, number: int | None) -> None:
        for worker in self.sums:
            found = None if number is None else self.marks.get((worker, number))
            self.sums[worker] = self.start[worker] if found is None else found

    def kept(self, worker: int, step: int) -> None:
        self.kept_sums[worker, step] = self.sums[worker]

    def take_back(self, worker: int, step: int | None) -> None:
        zero = torch.zeros_like(self.sums[worker])
        self.sums[worker] = zero if step is None else self.kept_sums[worker, step]
        self.start[worker] = self.sums[worker]
        for each in [key for key in self.marks if key[0] == worker]:
            del self.marks[each]

    def weights(self, answer: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"w": answer[0].clone()}

    def report(self) -> dict[str, Any]:
        return {"eta": 1.0}

    def save(self) -> dict[str, Any]:
        newest = {w: max(step for each, step in self.kept_sums if each == w) for w in self.sums}
        sums = {str(w): self.kept_sums[w, step] for w, step in newest.items()}
        return {"sums": sums, "step": max(newest.values()), "phase": self._phase}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.sums = {int(worker): each for worker, each in saved["sums"].items()}
        self.start = self._copied()
        self.kept_sums = {(worker, saved["step"]): each for worker, each in self.sums.items()}
        self._phase = saved["phase"]


class CountingWorker:
    def __init__(self, worker: int, dim: int = 100) -> None:
        self.worker = worker
        self.dim = dim
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.start = self.sum
        self.messages = 0
        self.marks: dict[int, Tensor] = {}
        self.open: Tensor | None = None
        self.pieces: list[Tensor] = []
        self.opening: tuple[Tensor | None, ...] = ()
        self._number = 0

    def begin(self, phase: Any, opening: tuple[Tensor | None, ...]) -> None:
        self.opening = opening
        assert opening[1] is None
        assert float(opening[0][0]) == phase.number  # type: ignore[index]

    def work(self, task: Any, answer: tuple[Tensor, ...], piece: int) -> None:
        assert answer[0].shape == (self.dim,)
        self.pieces = [answer[0]] if piece == 0 else [*self.pieces, answer[0]]
        self._number = task.number

    def message(self) -> tuple[Tensor, ...]:
        self.open = draw(self.worker, self._number, self.dim)
        return (self.open, torch.tensor(self._number))

    def commit(self) -> None:
        assert self.open is not None
        self.sum, self.open = self.sum + self.open, None
        self.messages += 1

    def discard(self) -> None:
        self.open = None

    def certify(self, answer: tuple[Tensor, ...]) -> CountPart:
        return CountPart(values={"messages": float(self.messages)}, tensors={"sum": self.sum})

    def mark(self, number: int, good: int | None) -> None:
        self.marks[number] = self.sum

    def rewind(self, number: int | None) -> None:
        found = None if number is None else self.marks.get(number)
        self.sum = self.start if found is None else found

    def samples(self) -> int:
        return len(self.pieces)

    def save(self) -> dict[str, Any]:
        return {"sum": self.sum, "messages": self.messages}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.sum = self.start = saved["sum"]
        self.messages = saved["messages"]
