"""A shard that is not the first: it follows the log on its range of w. No clock, no wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.errors import MechanismError
from actors.server.changes import Trail
from actors.server.messages import Proof, Push
from actors.server.shard_log import Ack, Call, Entry, SliceRule
from actors.units import Tensors

__all__ = ["ShardLoop", "Told"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a worker is told.

    Args:
        worker: that is told.
        serial: number of the answer that this is a slice of.
        snapshot: whether it is what a certificate is made at.
        at: updates behind it, as `ShardLoop.trail` counts them.
        tensors: slice of the answer, and those of the opening that goes with it.
        needed: whether the worker will wait for it; if not, a newer one may take its place.
    """

    worker: int
    serial: int
    tensors: Tensors
    needed: bool
    snapshot: bool = False
    at: int = 0


class ShardLoop:
    """One shard.

    Args:
        rule: of its range.
        save: takes a step and the rule's state, for a checkpoint.
    """

    def __init__(
        self, rule: SliceRule, save: Callable[[int, Mapping[str, Any]], None] | None = None
    ) -> None:
        self.rule = rule
        self.over = False
        """Whether the run is over."""
        self.trail = Trail()
        """Of what the answers are."""
        self.acks: list[Entry] = []
        """What the first server has not been told."""
        self.measured: list[tuple[int, dict[str, float]]] = []
        """Sums that it has not been told, by the number of their measurement."""
        self._save = save
        self._pushes: dict[int, Push] = {}
        self._proofs: dict[int, Proof] = {}
        self._serial = 0
        self._snapshot: tuple[int, Tensors, int] = (0, (), 0)
        self._opening: Tensors = ()
        self._coming: Counter[int] = Counter()
        """Processes of each worker that are there, and that the log has not come to."""

    def comes(self, worker: int) -> None:
        """A worker is there: nothing is told to it that the log had for one before it."""
        self._coming[worker] += 1

    def heard(self, worker: int, told: Push | Proof) -> None:
        """A slice came."""
        if isinstance(told, Push):
            self._pushes[worker] = told
            self.acks.append(Entry(Ack.PUSH, worker, told.number))
        else:
            self._proofs[worker] = told
            self.acks.append(Entry(Ack.PROOF, worker, told.number))

    def follow(self, entries: Iterable[Entry]) -> list[Told]:
        """Make the calls of a piece of the log; return what workers are told.

        Raises:
            MechanismError: a message is to be applied whose slice is not there.
        """
        found = (self._make(entry) for entry in entries)
        return [told for told in found if told is not None and not self._coming[told.worker]]

    def weights(self) -> Mapping[str, Any]:
        """Return this range of the model that the run has ended with."""
        return self.rule.weights(self._snapshot[1])

    # ----------------------------------------------------------------- inside

    def _make(self, entry: Entry) -> Told | None:
        rule, (what, a, b, c) = self.rule, entry
        if what in (Call.ANSWER, Call.NEWS):
            opening, self._opening = self._opening, ()
            slices = (*self._slice(a), *opening)
            needed = what == Call.ANSWER
            at = self.trail.at
            return Told(worker=a, serial=self._serial, tensors=slices, needed=needed, at=at)
        if what == Call.APPLY:
            self._apply(a, b, c)
        elif what == Call.CLOSE_PHASE:
            rule.close_phase()
            self.trail.add(None)
        elif what == Call.OPENING:
            self._opening = rule.opening()
        elif what == Call.SNAPSHOT:
            slices = self._slice(-1)
            self._snapshot = (self._serial, slices, self.trail.at)
        elif what == Call.MARK:
            rule.mark(a, b)
            serial, slices, at = self._snapshot
            return Told(worker=a, serial=serial, tensors=slices, needed=True, snapshot=True, at=at)
        elif what == Call.MEASURE:
            parts = {worker: proof.certificate for worker, proof in self._proofs.items()}
            self.measured.append((a, rule.measure(parts, self._snapshot[1])))
        elif what == Call.ACCEPT:
            rule.accept()
        elif what == Call.REWIND:
            rule.rewind(a if a >= 0 else None)
            self.trail.add(None)
        elif what == Call.KEPT:
            rule.kept(a, b)
        elif what == Call.TAKE_BACK:
            rule.take_back(a, b if b >= 0 else None)
            self.trail.add(None)
        elif what == Call.SAVE:
            if self._save is not None:
                self._save(a, rule.save())
        elif what == Call.JOIN:
            self._join(a)
        else:
            self.over = True
        return None

    def _slice(self, worker: int) -> Tensors:
        """Return the slice of an answer; the numbers behind it are the first server's to tell."""
        self._serial += 1
        return self.rule.answer(worker)[:1]

    def _apply(self, worker: int, number: int, staleness: int) -> None:
        push = self._pushes.pop(worker, None)
        if push is None or push.number != number:
            raise MechanismError(
                f"message {number} of worker {worker} is to be applied, but "
                f"{'none' if push is None else push.number} is there"
            )
        self.rule.apply(worker, push.tensors, staleness)
        self.trail.add(self.rule.changed())

    def _join(self, worker: int) -> None:
        # A proof of the process before stays: if the first server has not handed it in, another
        # will come.
        self._pushes.pop(worker, None)
        self._coming[worker] -= 1
        self.acks.append(Entry(Ack.JOIN, worker))
