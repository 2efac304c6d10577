"""The first server of several: its rule's calls become the log that the other shards follow.

    worker ── push ──▶ slice 0 ──▶ Lead ─── all slices there? ──▶ ServerLoop ──▶ rule of slice 0
           ── push ──▶ slice s ──▶ shard s ── ack ──▶ ┘                 └──▶ log ──▶ shards

Nothing is handed to the loop before every shard has said that its slice is there. So whatever the
loop decides can be done everywhere, and a message is applied by every shard, once, or by none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.server.messages import Proof, Push
from actors.server.protocols import Certificate, Phase
from actors.server.shard_log import Ack, Call, Entry, SliceRule
from actors.units import Tensors

__all__ = ["Lead"]


class Lead:
    """The rule of the first server's slice, for its loop; see `actors.server.protocols.ServerRule`.

    Every answer ends with a number that the slices of it have, too.

    Args:
        rule: of the slice.
        shards: others.
        ask: returns what the other shards have measured, once they have followed the log to the
            measurement with this number.
    """

    def __init__(
        self, rule: SliceRule, shards: int, ask: Callable[[int], Sequence[Mapping[str, float]]]
    ) -> None:
        self.rule = rule
        self.log: list[Entry] = []
        """What the other shards have not been told."""
        self._ask = ask
        self._serial = 0
        self._measurements = 0
        self._applied: dict[int, int] = {}
        """Number of the push that the loop has of each worker."""
        self._working: set[int] = set()
        """Workers that have a task."""
        self._step = -1
        self._pushes: dict[int, Push] = {}
        self._proofs: dict[int, Proof] = {}
        self._there: list[dict[tuple[int, int], int]] = [{} for _ in range(shards)]
        """By shard: the number of the newest slice, by kind and worker."""
        self._foreign: list[Counter[int]] = [Counter() for _ in range(shards)]
        """By shard: how often it has yet to say that a worker's process is another, until when its
        acks may be of the one before.
        """

    # ----------------------------------------------------------------- before the loop

    def heard(self, worker: int, told: Push | Proof) -> None:
        """A worker's own slice came."""
        if isinstance(told, Push):
            self._pushes[worker] = told
        else:
            self._proofs[worker] = told

    def acked(self, shard: int, ack: Entry) -> None:
        """Another shard, from 0, tells what has come."""
        what, worker, number, _ = ack
        if what == Ack.JOIN:
            self._foreign[shard][worker] -= 1
        elif not self._foreign[shard][worker]:
            self._there[shard][what, worker] = number

    def whole(self) -> tuple[int, Push | Proof] | None:
        """Take the next that has come with all slices, to be handed to the loop before another is
        asked for; None: there is none.
        """
        for worker, proof in self._proofs.items():
            if self._is_there(Ack.PROOF, worker, proof.number):
                del self._proofs[worker]
                return worker, proof
        for worker, push in self._pushes.items():
            if self._is_there(Ack.PUSH, worker, push.number):
                del self._pushes[worker]
                self._working.discard(worker)
                self._applied[worker] = push.number
                return worker, push
        return None

    def joined(self, worker: int) -> None:
        """A worker is there, a new one or another process in the place of a lost one: its loop is
        told next.
        """
        self._write(Call.JOIN, worker)
        for there, foreign in zip(self._there, self._foreign, strict=True):
            foreign[worker] += 1
            for kind in (Ack.PUSH, Ack.PROOF):
                there.pop((kind, worker), None)

    def lost(self, worker: int) -> None:
        """A worker is gone: forget what has not come whole."""
        self._pushes.pop(worker, None)
        self._proofs.pop(worker, None)

    def _is_there(self, kind: Ack, worker: int, number: int) -> bool:
        return all(there.get((kind, worker)) == number for there in self._there)

    # ----------------------------------------------------------------- the loop's calls

    def phase(self) -> Phase:
        """Return what is asked for now."""
        return self.rule.phase()

    def opening(self) -> Tensors:
        """Return this slice of what is to be known for the phase."""
        self._write(Call.OPENING)
        return self.rule.opening()

    def answer(self, worker: int) -> Tensors:
        """Return this slice of the w of now, and the number that all slices of it have."""
        if worker < 0:
            self._write(Call.SNAPSHOT)
        elif worker in self._working:
            self._write(Call.NEWS, worker)
        else:
            self._working.add(worker)
            self._write(Call.ANSWER, worker)
        self._serial += 1
        return (*self.rule.answer(worker), torch.tensor([self._serial]))

    def apply(self, worker: int, message: Tensors, staleness: int) -> None:
        """Apply this slice of a message."""
        self._write(Call.APPLY, worker, self._applied[worker], staleness)
        self.rule.apply(worker, message, staleness)

    def changed(self) -> Tensor | None:
        """Return which coordinates of this slice the last message has changed; None: any."""
        return self.rule.changed()

    def close_phase(self) -> None:
        """End the phase of now."""
        self._write(Call.CLOSE_PHASE)
        self.rule.close_phase()

    def certify(self, parts: Mapping[int, Certificate], answer: Tensors) -> dict[str, float]:
        """Return the figures of the sums over all shards."""
        self._measurements += 1
        self._write(Call.MEASURE, self._measurements)
        total = self.rule.measure(parts, answer[:-1])
        for each in self._ask(self._measurements):
            total = {name: value + each[name] for name, value in total.items()}
        return self.rule.figures(parts, total)

    def judge(self, figures: Mapping[str, float]) -> str | None:
        """Tell why the step was too long."""
        reason = self.rule.judge(figures)
        if reason is None:
            self._write(Call.ACCEPT)
        return reason

    def mark(self, worker: int, number: int) -> None:
        """Remember what a worker has applied for a certificate."""
        self._write(Call.MARK, worker, number)
        self.rule.mark(worker, number)

    def rewind(self, number: int | None) -> None:
        """Go back to the marks of a certificate."""
        self._write(Call.REWIND, -1 if number is None else number)
        self.rule.rewind(number)

    def kept(self, worker: int, step: int) -> None:
        """Remember what a worker has applied for a checkpoint."""
        self._step = step
        self._write(Call.KEPT, worker, step)
        self.rule.kept(worker, step)

    def take_back(self, worker: int, step: int | None) -> None:
        """Undo what a lost worker has applied since a checkpoint."""
        self._write(Call.TAKE_BACK, worker, -1 if step is None else step)
        self.rule.take_back(worker, step)
        self._working.discard(worker)

    def weights(self, answer: Tensors) -> Mapping[str, Tensor]:
        """Return this slice of the model."""
        return self.rule.weights(answer[:-1])

    def report(self) -> Mapping[str, Any]:
        """Return the figures since the last report."""
        return self.rule.report()

    def save(self) -> Mapping[str, Any]:
        """Return this slice of the state, and let the others write theirs, for the checkpoint that
        the workers have last kept their state for.
        """
        self._write(Call.SAVE, self._step)
        return self.rule.save()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned; the other shards have parts of their own."""
        self.rule.restore(saved)

    def over(self) -> None:
        """Let the other shards end."""
        self._write(Call.OVER)

    def _write(self, call: Call, *words: int) -> None:
        self.log.append(Entry(call, *words))
