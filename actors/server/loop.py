"""The order of a parameter server: a push comes in, orders go out. No clock, no wire, no Ray.

    worker k   ── push (number, era, phase) ──▶  a repeat?            forget it
                                                 of an old phase?     reply "discard", new task
                                                 a gather?            hold until all are there
                                                 late for others?     hold until they came
                                                 too stale?           reply "discard", new task
                                                 else                 apply, reply "commit", task

`staleness.py` says what is late and what too stale, `certification.py` which certificate is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.errors import MechanismError
from actors.server.certification import Certification
from actors.server.changes import Trail
from actors.server.messages import News, Order, Proof, Push, Reply, Verdict
from actors.server.protocols import ServerRule, Task
from actors.server.staleness import Bound, StalenessCounts
from actors.units import Tensors

__all__ = ["Ends", "ServerLoop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """When a run ends: at whichever comes first.

    Args:
        samples: looked at, in all; None: any number.
        messages: applied; None: any number.
        tolerance: largest `figure` of a certificate that is good enough; 0: none is.
        figure: of the certificate, e.g. duality_gap.
        certify_samples: samples between two certificates.
    """

    samples: float | None = None
    messages: int | None = None
    tolerance: float = 0.0
    figure: str = ""
    certify_samples: float = float("inf")


@dataclass(slots=True)
class _Seat:
    """What the server knows of one worker."""

    number: int = 0
    """Of the task that it has, or will have next."""
    version: int = 0
    phase: int = -1
    """That its worker has the opening of."""
    busy: bool = False
    away: bool = False
    """Whether it is lost, and another process will come in its place."""
    step: int | None = None
    """Of the checkpoint that the process in place of a lost one begins with."""
    held: Push | None = None
    pending: set[str] = field(default_factory=set)
    """What the next reply must say besides: "certify", "save", "rewind"."""


class ServerLoop:
    """One server.

    Args:
        rule: what is computed.
        bound: of the staleness.
        ends: of the run.
        broadcast_every: T, updates between two broadcasts of w to all workers; 0: none.
        on_applied: told the worker, the task's number and the staleness of what is applied.
    """

    def __init__(
        self,
        rule: ServerRule,
        bound: Bound,
        ends: Ends,
        broadcast_every: int = 0,
        on_applied: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.rule = rule
        self.bound = bound
        self.ends = ends
        self.version = 0
        """t, updates so far."""
        self.samples = 0
        self.era = 0
        self.messages = 0
        self.refused = 0
        self.repeats = 0
        self.ended_by = ""
        """Why the run ends; empty while it goes on."""
        self.final: Tensors | None = None
        """The answer that the run ends with, once every worker has been told that it is over."""
        self.rows: list[dict[str, Any]] = []
        self.trail = Trail()
        """Of what the answers' vector is changed by."""
        self._seats: dict[int, _Seat] = {}
        self._numbers: dict[int, int] = {}
        """Of the next tasks of workers that have no seat."""
        self._broadcast_every = broadcast_every
        self._on_applied = on_applied
        self._paused = False
        self._in_phase = 0
        self._staleness = StalenessCounts()
        self._certification = Certification(ends.certify_samples)
        self._checkpoint: int | None = None
        self._unsaved: set[int] = set()

    # ----------------------------------------------------------------- workers come and go

    @property
    def workers(self) -> list[int]:
        """The workers that are there, ascending."""
        return sorted(self._seats)

    def expect(self, workers: Iterable[int]) -> None:
        """Say which workers a run begins with, before any has joined.

        Rounds and certificates wait for all of them. The first certificate is that of the
        beginning: where the run starts, and what the step's judge compares with.
        """
        for worker in workers:
            self._seat(worker).away = True
        self._ask_for_certificate()

    def joined(self, worker: int) -> list[Order]:
        """A worker is there: a new one, or another process in the place of a lost one."""
        seat = self._seat(worker)
        seat.away = False
        seat.phase = -1
        orders = [self._reply(worker, "none")]
        return orders + self._finish()

    def lost(self, worker: int, step: int | None = None) -> list[Order]:
        """A worker is gone with its state since checkpoint `step`: take that back.

        The others go on, but for rounds and certificates, which need every worker's samples and
        wait until another process has come in its place.

        Args:
            worker: that is gone.
            step: of the checkpoint whose part the process in its place will begin with, whether or
                not the checkpoint became whole; None: it will begin with nothing.
        """
        seat = self._seat(worker)
        seat.away, seat.busy, seat.held, seat.step = True, False, None, step
        # What the lost process still sends is then a repeat.
        seat.number += 1
        seat.pending.clear()
        self.rule.take_back(worker, step)
        self.trail.add(None)
        if self._certification.awaits(worker):
            seat.pending.add("certify")
        if self._unsaved:
            # The checkpoint that it was to be part of cannot become whole.
            self._unsaved.clear()
            self._checkpoint = None
            for each in self._seats.values():
                each.pending.discard("save")
        return self._release()

    def pause(self) -> list[Order]:
        """Give out no more tasks; once `idle`, workers may be added and removed."""
        self._paused = True
        return self._release()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not any(seat.busy or seat.held for seat in self._seats.values())

    def resume(self, workers: Sequence[int]) -> list[Order]:
        """Go on after a pause with these workers, each with the samples that it now has.

        Raises:
            MechanismError: messages are under way.
        """
        if not self.idle:
            raise MechanismError("workers may change only while nothing is under way")
        self._paused = False
        self.trail.add(None)
        self._certification.give_up()
        if self._unsaved:
            self._unsaved.clear()
            self._checkpoint = None
        self._numbers |= {worker: seat.number for worker, seat in self._seats.items()}
        self._seats = {}
        for worker in workers:
            self._seat(worker)
        return [order for worker in self.workers for order in self.joined(worker)]

    # ----------------------------------------------------------------- messages

    def arrived(self, worker: int, push: Push) -> list[Order]:
        """A push came.

        Raises:
            MechanismError: it is not the one that is expected.
        """
        seat = self._seat(worker)
        if push.number < seat.number or (seat.held is not None and push.number == seat.number):
            self.repeats += 1
            return []
        if push.number > seat.number or not seat.busy:
            raise MechanismError(
                f"worker {worker} sent message {push.number}, but {seat.number} was expected"
            )
        seat.busy = False
        phase = self.rule.phase()
        if push.era != self.era or push.phase != phase.number:
            return self._discard(worker) + self._release()
        if not phase.gather and self.bound.refuses(self.version - seat.version):
            self.refused += 1
            return self._discard(worker) + self._release()
        seat.held = push
        return self._release()

    def proved(self, worker: int, proof: Proof) -> list[Order]:
        """A worker's part of a certificate came."""
        parts = self._certification.took(worker, proof)
        if parts is None:
            return []
        return self._certified(self.rule.certify(parts, self._certification.answer))

    # ----------------------------------------------------------------- checkpoints, ends

    def checkpoint(self, step: int) -> None:
        """Let every worker keep its state for a checkpoint with its next reply."""
        self._checkpoint = step
        self._unsaved = set(self._seats)
        for seat in self._seats.values():
            seat.pending.add("save")

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is begun that not every worker has been told of."""
        return bool(self._unsaved)

    @property
    def told(self) -> int | None:
        """Step of the newest checkpoint if every worker has been told of it; it is given up when a
        worker is lost before that.
        """
        return None if self._unsaved else self._checkpoint

    def stop(self, why: str) -> list[Order]:
        """End the run: what is under way is still applied, then a last certificate is made."""
        if not self.ended_by:
            self.ended_by = why
        return self._release()

    def save(self) -> dict[str, Any]:
        """Return where the loop stands, for the server's part of a checkpoint."""
        return {
            "version": self.version,
            "samples": self.samples,
            "messages": self.messages,
            "in_phase": self._in_phase,
            "next_certificate": self._certification.due_samples,
            "numbers": self._numbers | {w: seat.number for w, seat in self._seats.items()},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `save` returned, before any worker has joined."""
        self.version = saved["version"]
        self.samples = saved["samples"]
        self.messages = saved["messages"]
        self._in_phase = saved["in_phase"]
        self._certification.due_samples = saved["next_certificate"]
        self._numbers = dict(saved["numbers"])

    # ----------------------------------------------------------------- inside

    def _seat(self, worker: int) -> _Seat:
        if worker not in self._seats:
            self._seats[worker] = _Seat(number=self._numbers.get(worker, 0))
        return self._seats[worker]

    @property
    def _going(self) -> bool:
        """Whether tasks are given out."""
        return not self.ended_by and not self._paused

    def _release(self) -> list[Order]:
        """Apply what is held and may be applied now."""
        orders: list[Order] = []
        seats = self._seats
        while True:
            held = [worker for worker, seat in seats.items() if seat.held is not None]
            if not held:
                break
            held.sort()
            if self.rule.phase().gather:
                if len(held) < len(seats):
                    break
                orders += self._round(held)
                continue
            ready = [worker for worker in held if self._in_time(worker)]
            if not ready:
                break
            orders += self._apply_one(min(ready, key=lambda w: (seats[w].version, w)))
        if held and not self._going and not any(seat.busy for seat in seats.values()):
            # A round that will not become whole, as no more tasks are given out.
            for worker in held:
                orders += self._discard(worker)
        return orders + self._finish() if self.ended_by else orders

    def _discard(self, worker: int) -> list[Order]:
        """Tell a worker that its push will never be applied."""
        seat = self._seats[worker]
        seat.held = None
        seat.number += 1
        return [self._reply(worker, "discard")]

    def _in_time(self, worker: int) -> bool:
        """Tell whether every other message can still be applied in time after this one."""
        if not self.bound.waits:
            return True
        return self.bound.in_time(
            self.version,
            (
                seat.version
                for other, seat in self._seats.items()
                if other != worker and (seat.busy or seat.held is not None)
            ),
        )

    def _round(self, workers: list[int]) -> list[Order]:
        for worker in workers:
            self._apply(worker, 0)
        self._count_update()
        orders = [self._reply(worker, "commit") for worker in workers]
        return orders + self._discard_of_old_phases()

    def _apply_one(self, worker: int) -> list[Order]:
        seat = self._seats[worker]
        staleness = self.version - seat.version
        self._staleness.add(staleness)
        self._apply(worker, staleness)
        over = self._count_update()
        orders = [self._reply(worker, "commit")]
        if over:
            orders += self._discard_of_old_phases()
        if self._broadcast_every and self.version % self._broadcast_every == 0:
            orders += self._news(besides=worker)
        return orders

    def _apply(self, worker: int, staleness: int) -> None:
        seat = self._seats[worker]
        push, seat.held = seat.held, None
        if push is None:
            raise MechanismError(f"nothing of worker {worker} is held")
        self.rule.apply(worker, push.tensors, staleness)
        self.trail.add(self.rule.changed())
        if self._on_applied is not None:
            self._on_applied(worker, push.number, staleness)
        seat.number += 1
        self.messages += 1
        self.samples += push.samples

    def _count_update(self) -> bool:
        """Count one more; tell whether the phase is over with it."""
        self.version += 1
        self._in_phase += 1
        if self.ends.samples is not None and self.samples >= self.ends.samples:
            self.ended_by = self.ended_by or "epochs"
        if self.ends.messages is not None and self.messages >= self.ends.messages:
            self.ended_by = self.ended_by or "messages"
        if not self.ended_by and self._certification.due(self.samples):
            self._ask_for_certificate()
        phase = self.rule.phase()
        if phase.messages is None or self._in_phase < phase.messages:
            return False
        self.rule.close_phase()
        self.trail.add(None)
        self._in_phase = 0
        return True

    def _discard_of_old_phases(self) -> list[Order]:
        """Let go of what waits for its application although its phase is over."""
        number = self.rule.phase().number
        old = [
            worker
            for worker, seat in sorted(self._seats.items())
            if seat.held is not None and seat.held.phase != number
        ]
        return [order for worker in old for order in self._discard(worker)]

    def _reply(self, worker: int, verdict: Verdict) -> Order:
        """Tell a worker what became of its push, and what to do now."""
        seat = self._seats[worker]
        phase = self.rule.phase()
        going = self._going
        if going:
            seat.busy = True
            seat.version = self.version
        if "save" in seat.pending and self._checkpoint is not None:
            self.rule.kept(worker, self._checkpoint)
            self._unsaved.discard(worker)
        certify = None
        if "certify" in seat.pending:
            now = self._certification
            certify = (now.number, now.answer, now.at)
            self.rule.mark(worker, self._certification.number)
        opening = None
        if going and seat.phase != phase.number:
            opening = self.rule.opening()
            seat.phase = phase.number
        reply = Reply(
            verdict=verdict,
            rewind="rewind" in seat.pending,
            good=self._certification.good,
            save=self._checkpoint if "save" in seat.pending else None,
            certify=certify,
            era=self.era,
            opening=opening,
            task=Task(phase=phase, number=seat.number, version=self.version) if going else None,
            answer=self.rule.answer(worker) if going else (),
            over=self.final is not None,
            at=self.trail.at,
        )
        seat.pending.clear()
        return Order(worker=worker, message=reply)

    def _news(self, besides: int) -> list[Order]:
        return [
            Order(
                worker=worker,
                message=News(
                    era=self.era,
                    version=self.version,
                    answer=self.rule.answer(worker),
                    at=self.trail.at,
                ),
            )
            for worker, seat in sorted(self._seats.items())
            if worker != besides and seat.busy
        ]

    # ----------------------------------------------------------------- certificates

    def _ask_for_certificate(self) -> None:
        self._certification.begin(self._seats, self.rule.answer(-1), self.trail.at)
        for seat in self._seats.values():
            seat.pending.add("certify")

    def _certified(self, figures: dict[str, float]) -> list[Order]:
        self.rows.append(self._row(figures))
        value = figures.get(self.ends.figure)
        if value is not None and self.ends.tolerance > 0 and value <= self.ends.tolerance:
            self.ended_by = "tolerance"
            return self._finish()
        if self.ended_by:
            return self._over() if self._certification.last else self._finish()
        reason = self.rule.judge(figures)
        if reason is None:
            self._certification.good = self._certification.number
            return []
        self.rows[-1]["rewound"] = reason
        return self._rewind()

    def _rewind(self) -> list[Order]:
        """Go back to the last good certificate; what is under way will be discarded."""
        self.era += 1
        phase = self.rule.phase().number
        self.rule.rewind(self._certification.good)
        self.trail.add(None)
        if self.rule.phase().number != phase:
            self._in_phase = 0
        orders = []
        for worker, seat in sorted(self._seats.items()):
            if seat.away:
                # The process that will come has no marks, only what was kept.
                self.rule.take_back(worker, seat.step)
                self.trail.add(None)
                continue
            seat.pending.add("rewind")
            if seat.held is not None:
                orders += self._discard(worker)
        return orders

    def _finish(self) -> list[Order]:
        """Once the run has ended and nothing is under way, certify what there is, and stop all."""
        if not self.ended_by or not self.idle or self.final is not None:
            return []
        if not self._certification.open:
            if self.ended_by == "tolerance":
                return self._over()
            self._certification.last = True
            self._ask_for_certificate()
        # Nobody pushes any more, so nobody would be told of a certificate by an answer.
        return [
            self._reply(worker, "none")
            for worker, seat in sorted(self._seats.items())
            if "certify" in seat.pending and not seat.away
        ]

    def _over(self) -> list[Order]:
        """End with what the last certificate is of."""
        self.final = self._certification.answer
        return [self._reply(w, "none") for w in self.workers if not self._seats[w].away]

    def _row(self, figures: Mapping[str, float]) -> dict[str, Any]:
        return {
            "step": self.version,
            "messages": self.messages,
            "samples_seen": self.samples,
            **figures,
            **self._staleness.taken(),
            "refused": self.refused,
            **self.rule.report(),
        }
