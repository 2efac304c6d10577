"""The order of a parameter server: a push comes in, orders go out. No clock, no wire, no Ray.

    worker k   ── push (number, era, phase) ──▶  a repeat?            forget it
                                                 of an old phase?     reply "discard", new task
                                                 a gather?            hold until all are there
                                                 late for others?     hold until they came
                                                 too stale?           reply "discard", new task
                                                 else                 apply, reply "commit", task

`staleness.py` says what is late and what too stale, `certification.py` which certificate is made,
`saving.py` which checkpoint, `ends.py` when the run ends; `roll.py` has what is known of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from actors.errors import MechanismError
from actors.server.certification import Certification
from actors.server.changes import Trail
from actors.server.ends import Ends
from actors.server.messages import News, Order, Proof, Push, Reply, Verdict
from actors.server.protocols import ServerRule, Task
from actors.server.roll import Roll
from actors.server.saving import Saving
from actors.server.staleness import Bound, StalenessCounts
from actors.units import Tensors

__all__ = ["ServerLoop"]


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
        self._roll = Roll()
        self._broadcast_every = broadcast_every
        self._on_applied = on_applied
        self._paused = False
        self._in_phase = 0
        self._staleness = StalenessCounts()
        self._certification = Certification(ends.certify_samples)
        self._saving = Saving()

    # ----------------------------------------------------------------- workers come and go

    @property
    def workers(self) -> list[int]:
        """The workers that are there, ascending."""
        return list(self._roll)

    def expect(self, workers: Iterable[int]) -> None:
        """Say which workers a run begins with, before any has joined.

        Rounds and certificates wait for all of them. The first certificate is that of the
        beginning: where the run starts, and what the step's judge compares with.
        """
        for worker in workers:
            self._roll[worker].away = True
        self._ask_for_certificate()

    def joined(self, worker: int) -> list[Order]:
        """A worker is there: a new one, or another process in the place of a lost one."""
        entry = self._roll[worker]
        entry.away = False
        entry.phase = -1
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
        entry = self._roll[worker]
        entry.away, entry.busy, entry.held, entry.step = True, False, None, step
        # What the lost process still sends is then a repeat.
        entry.number += 1
        entry.rewinds = False
        self.rule.take_back(worker, step)
        self.trail.add(None)
        self._certification.lost(worker)
        # A checkpoint that it was to be part of cannot become whole.
        self._saving.give_up()
        return self._release()

    def pause(self) -> list[Order]:
        """Give out no more tasks; once `idle`, workers may be added and removed."""
        self._paused = True
        return self._release()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._roll.idle

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
        self._saving.give_up()
        self._roll.renew(workers)
        return [order for worker in self.workers for order in self.joined(worker)]

    # ----------------------------------------------------------------- messages

    def arrived(self, worker: int, push: Push) -> list[Order]:
        """A push came.

        Raises:
            MechanismError: it is not the one that is expected.
        """
        entry = self._roll[worker]
        if push.number < entry.number or (entry.held is not None and push.number == entry.number):
            self.repeats += 1
            return []
        if push.number > entry.number or not entry.busy:
            raise MechanismError(
                f"worker {worker} sent message {push.number}, but {entry.number} was expected"
            )
        entry.busy = False
        phase = self.rule.phase()
        if push.era != self.era or push.phase != phase.number:
            return self._discard(worker) + self._release()
        if not phase.gather and self.bound.refuses(self.version - entry.version):
            self.refused += 1
            return self._discard(worker) + self._release()
        entry.held = push
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
        self._saving.begin(step, self._roll)

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is begun that not every worker has been told of."""
        return self._saving.open

    @property
    def told(self) -> int | None:
        """Step of the newest checkpoint if every worker has been told of it; it is given up when a
        worker is lost before that.
        """
        return self._saving.told

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
            "numbers": self._roll.numbers(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `save` returned, before any worker has joined."""
        self.version = saved["version"]
        self.samples = saved["samples"]
        self.messages = saved["messages"]
        self._in_phase = saved["in_phase"]
        self._certification.due_samples = saved["next_certificate"]
        self._roll.restore(saved["numbers"])

    # ----------------------------------------------------------------- inside

    @property
    def _going(self) -> bool:
        """Whether tasks are given out."""
        return not self.ended_by and not self._paused

    def _release(self) -> list[Order]:
        """Apply what is held and may be applied now."""
        orders: list[Order] = []
        roll = self._roll
        while waiting := roll.waiting():
            if self.rule.phase().gather:
                if len(waiting) < len(roll):
                    break
                orders += self._round(waiting)
                continue
            ready = [worker for worker in waiting if self._in_time(worker)]
            if not ready:
                break
            orders += self._apply_one(min(ready, key=lambda w: (roll[w].version, w)))
        if waiting and not self._going and not roll.computing:
            # A round that will not become whole, as no more tasks are given out.
            for worker in waiting:
                orders += self._discard(worker)
        return orders + self._finish() if self.ended_by else orders

    def _discard(self, worker: int) -> list[Order]:
        """Tell a worker that its push will never be applied."""
        entry = self._roll[worker]
        entry.held = None
        entry.number += 1
        return [self._reply(worker, "discard")]

    def _in_time(self, worker: int) -> bool:
        """Tell whether every other message can still be applied in time after this one."""
        if not self.bound.waits:
            return True
        return self.bound.in_time(self.version, self._roll.under_way(besides=worker))

    def _round(self, workers: list[int]) -> list[Order]:
        for worker in workers:
            self._apply(worker, 0)
        self._count_update()
        orders = [self._reply(worker, "commit") for worker in workers]
        return orders + self._discard_of_old_phases()

    def _apply_one(self, worker: int) -> list[Order]:
        staleness = self.version - self._roll[worker].version
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
        entry = self._roll[worker]
        push, entry.held = entry.held, None
        if push is None:
            raise MechanismError(f"nothing of worker {worker} is held")
        self.rule.apply(worker, push.tensors, staleness)
        self.trail.add(self.rule.changed())
        if self._on_applied is not None:
            self._on_applied(worker, push.number, staleness)
        entry.number += 1
        self.messages += 1
        self.samples += push.samples

    def _count_update(self) -> bool:
        """Count one more; tell whether the phase is over with it."""
        self.version += 1
        self._in_phase += 1
        self.ended_by = self.ended_by or self.ends.reached(self.samples, self.messages)
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
        roll = self._roll
        old = [
            worker
            for worker in roll.waiting()
            if (push := roll[worker].held) is not None and push.phase != number
        ]
        return [order for worker in old for order in self._discard(worker)]

    def _reply(self, worker: int, verdict: Verdict) -> Order:
        """Tell a worker what became of its push, and what to do now."""
        entry = self._roll[worker]
        phase = self.rule.phase()
        going = self._going
        save = self._saving.tell(worker)
        if save is not None:
            self.rule.kept(worker, save)
        certify = self._certification.tell(worker)
        if certify is not None:
            self.rule.mark(worker, self._certification.number)
        rewind, entry.rewinds = entry.rewinds, False
        opening = task = None
        if going:
            entry.busy = True
            entry.version = self.version
            if entry.phase != phase.number:
                opening = self.rule.opening()
                entry.phase = phase.number
            task = Task(phase=phase, number=entry.number, version=self.version)
        reply = Reply(
            verdict=verdict,
            rewind=rewind,
            good=self._certification.good,
            save=save,
            certify=certify,
            era=self.era,
            opening=opening,
            task=task,
            answer=self.rule.answer(worker) if going else (),
            over=self.final is not None,
            at=self.trail.at,
        )
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
            for worker in self._roll
            if worker != besides and self._roll[worker].busy
        ]

    # ----------------------------------------------------------------- certificates

    def _ask_for_certificate(self) -> None:
        self._certification.begin(self._roll, self.rule.answer(-1), self.trail.at)

    def _certified(self, figures: dict[str, float]) -> list[Order]:
        self.rows.append(self._row(figures))
        if self.ends.good_enough(figures):
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
        for worker in self._roll:
            entry = self._roll[worker]
            if entry.away:
                # The process that will come has no marks, only what was kept.
                self.rule.take_back(worker, entry.step)
                self.trail.add(None)
                continue
            entry.rewinds = True
            if entry.held is not None:
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
            for worker in self._roll.present()
            if self._certification.untold(worker)
        ]

    def _over(self) -> list[Order]:
        """End with what the last certificate is of."""
        self.final = self._certification.answer
        return [self._reply(worker, "none") for worker in self._roll.present()]

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
