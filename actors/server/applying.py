"""When a push that is held is applied, and what its worker and the others are told then."""

from __future__ import annotations

from collections.abc import Callable

from actors.errors import MechanismError
from actors.server.course import Course
from actors.server.messages import Order
from actors.server.protocols import ServerRule
from actors.server.replies import Replies
from actors.server.staleness import Bound
from actors.server.state import ServerState

__all__ = ["Applying"]


class Applying:
    """Applies what is held, in order.

    Args:
        rule: what is computed.
        bound: of the staleness.
        state: of the run.
        replies: to the workers.
        course: of the run.
        broadcast_every: T, updates between two broadcasts of w to all workers; 0: none.
        on_applied: told the worker, the task's number and the staleness of what is applied.
    """

    def __init__(
        self,
        rule: ServerRule,
        bound: Bound,
        state: ServerState,
        replies: Replies,
        course: Course,
        broadcast_every: int,
        on_applied: Callable[[int, int, int], None] | None,
    ) -> None:
        self._rule = rule
        self._bound = bound
        self._state = state
        self._replies = replies
        self._course = course
        self._broadcast_every = broadcast_every
        self._on_applied = on_applied

    def release(self) -> list[Order]:
        """Apply what is held and may be applied now."""
        orders: list[Order] = []
        state, roll = self._state, self._state.roll
        while waiting := roll.waiting():
            if self._rule.phase().gather:
                if len(waiting) < len(roll):
                    break
                orders += self._round(waiting)
                continue
            ready = [worker for worker in waiting if self._in_time(worker)]
            if not ready:
                break
            orders += self._one(min(ready, key=lambda w: (roll[w].version, w)))
        if waiting and not state.going and not roll.computing:
            # A round that will not become whole, as no more tasks are given out.
            orders += [self._replies.discard(worker) for worker in waiting]
        return orders + self._course.finish() if state.ended_by else orders

    def _in_time(self, worker: int) -> bool:
        """Tell whether every other message can still be applied in time after this one."""
        return self._bound.in_time(self._state.version, self._state.roll.under_way(besides=worker))

    def _round(self, workers: list[int]) -> list[Order]:
        for worker in workers:
            self._apply(worker, 0)
        self._count_update()
        orders = [self._replies.reply(worker, "commit") for worker in workers]
        return orders + self._discard_of_old_phases()

    def _one(self, worker: int) -> list[Order]:
        state = self._state
        staleness = state.version - state.roll[worker].version
        state.staleness.add(staleness)
        self._apply(worker, staleness)
        over = self._count_update()
        orders = [self._replies.reply(worker, "commit")]
        if over:
            orders += self._discard_of_old_phases()
        if self._broadcast_every and state.version % self._broadcast_every == 0:
            orders += self._replies.news(besides=worker)
        return orders

    def _apply(self, worker: int, staleness: int) -> None:
        state = self._state
        entry = state.roll[worker]
        push, entry.held = entry.held, None
        if push is None:
            raise MechanismError(f"nothing of worker {worker} is held")
        self._rule.apply(worker, push.tensors, staleness)
        state.trail.add(self._rule.changed())
        if self._on_applied is not None:
            self._on_applied(worker, push.number, staleness)
        entry.number += 1
        state.messages += 1
        state.samples += push.samples

    def _count_update(self) -> bool:
        """Count one more; tell whether the phase is over with it."""
        state = self._state
        state.version += 1
        state.in_phase += 1
        self._course.counted()
        phase = self._rule.phase()
        if phase.messages is None or state.in_phase < phase.messages:
            return False
        self._rule.close_phase()
        state.trail.add(None)
        state.in_phase = 0
        return True

    def _discard_of_old_phases(self) -> list[Order]:
        """Let go of what waits for its application although its phase is over."""
        number = self._rule.phase().number
        roll = self._state.roll
        old = [
            worker
            for worker in roll.waiting()
            if (push := roll[worker].held) is not None and push.phase != number
        ]
        return [self._replies.discard(worker) for worker in old]
