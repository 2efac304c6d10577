"""The order of a parameter server: a push comes in, orders go out. No clock, no wire, no Ray.

    worker k   ── push (number, era, phase) ──▶  a repeat?            forget it
                                                 of an old phase?     reply "discard", new task
                                                 a gather?            hold until all are there
                                                 late for others?     hold until they came
                                                 too stale?           reply "discard", new task
                                                 else                 apply, reply "commit", task

    loop         who comes, who goes, what arrives
    └▶ applying  what is held, until it may be applied
       └▶ course     certificates: the run goes on, back, or to its end
          └▶ replies     what workers are told
             └▶ state        what is known of the run and of its workers

`staleness.py` says what is late and what too stale, `certification.py` which certificate is made,
`saving.py` which checkpoint, `ends.py` when the run ends; `roll.py` has what is known of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from actors.errors import MechanismError
from actors.server.applying import Applying
from actors.server.certification import Certification
from actors.server.course import Course
from actors.server.ends import Ends
from actors.server.messages import Order, Proof, Push
from actors.server.protocols import ServerRule
from actors.server.replies import Replies
from actors.server.staleness import Bound
from actors.server.state import ServerState

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
        self.state = ServerState(certification=Certification(ends.certify_samples))
        self._bound = bound
        self._replies = Replies(rule, self.state)
        self._course = Course(rule, ends, self.state, self._replies)
        self._applying = Applying(
            rule, bound, self.state, self._replies, self._course, broadcast_every, on_applied
        )

    # ----------------------------------------------------------------- workers come and go

    @property
    def workers(self) -> list[int]:
        """The workers that are there, ascending."""
        return list(self.state.roll)

    def expect(self, workers: Iterable[int]) -> None:
        """Say which workers a run begins with, before any has joined.

        Rounds and certificates wait for all of them. The first certificate is that of the
        beginning: where the run starts, and what the step's judge compares with.
        """
        for worker in workers:
            self.state.roll[worker].away = True
        self._course.certify()

    def joined(self, worker: int) -> list[Order]:
        """A worker is there: a new one, or another process in the place of a lost one."""
        entry = self.state.roll[worker]
        entry.away = False
        entry.phase = -1
        return [self._replies.reply(worker, "none"), *self._course.finish()]

    def lost(self, worker: int, step: int | None = None) -> list[Order]:
        """A worker is gone with its state since checkpoint `step`: take that back.

        The others go on, but for rounds and certificates, which need every worker's samples and
        wait until another process has come in its place.

        Args:
            worker: that is gone.
            step: of the checkpoint whose part the process in its place will begin with, whether or
                not the checkpoint became whole; None: it will begin with nothing.
        """
        state = self.state
        entry = state.roll[worker]
        entry.away, entry.busy, entry.held, entry.step = True, False, None, step
        # What the lost process still sends is then a repeat.
        entry.number += 1
        entry.rewinds = False
        self.rule.take_back(worker, step)
        state.trail.add(None)
        state.certification.lost(worker)
        # A checkpoint that it was to be part of cannot become whole.
        state.saving.give_up()
        return self._applying.release()

    def pause(self) -> list[Order]:
        """Give out no more tasks; once `idle`, workers may be added and removed."""
        self.state.paused = True
        return self._applying.release()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self.state.roll.idle

    def resume(self, workers: Sequence[int]) -> list[Order]:
        """Go on after a pause with these workers, each with the samples that it now has.

        Raises:
            MechanismError: messages are under way.
        """
        if not self.idle:
            raise MechanismError("workers may change only while nothing is under way")
        state = self.state
        state.paused = False
        state.trail.add(None)
        state.certification.give_up()
        state.saving.give_up()
        state.roll.renew(workers)
        return [order for worker in self.workers for order in self.joined(worker)]

    # ----------------------------------------------------------------- messages

    def arrived(self, worker: int, push: Push) -> list[Order]:
        """A push came.

        Raises:
            MechanismError: it is not the one that is expected.
        """
        state = self.state
        entry = state.roll[worker]
        if push.number < entry.number or (entry.held is not None and push.number == entry.number):
            state.repeats += 1
            return []
        if push.number > entry.number or not entry.busy:
            raise MechanismError(
                f"worker {worker} sent message {push.number}, but {entry.number} was expected"
            )
        entry.busy = False
        phase = self.rule.phase()
        if push.era != state.era or push.phase != phase.number:
            return [self._replies.discard(worker), *self._applying.release()]
        if not phase.gather and self._bound.refuses(state.version - entry.version):
            state.refused += 1
            return [self._replies.discard(worker), *self._applying.release()]
        entry.held = push
        return self._applying.release()

    def proved(self, worker: int, proof: Proof) -> list[Order]:
        """A worker's part of a certificate came."""
        return self._course.proved(worker, proof)

    # ----------------------------------------------------------------- checkpoints, ends

    def checkpoint(self, step: int) -> None:
        """Let every worker keep its state for a checkpoint with its next reply."""
        self.state.saving.begin(step, self.state.roll)

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is begun that not every worker has been told of."""
        return self.state.saving.open

    @property
    def told(self) -> int | None:
        """Step of the newest checkpoint if every worker has been told of it; it is given up when a
        worker is lost before that.
        """
        return self.state.saving.told

    def stop(self, why: str) -> list[Order]:
        """End the run: what is under way is still applied, then a last certificate is made."""
        self.state.ended_by = self.state.ended_by or why
        return self._applying.release()
