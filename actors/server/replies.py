"""What a parameter server tells its workers, at the moment at which it is written."""

from __future__ import annotations

from actors.server.messages import News, Order, Reply, Verdict
from actors.server.protocols import ServerRule, Task
from actors.server.state import ServerState

__all__ = ["Replies"]


class Replies:
    """Writes replies and news from what the rule and the state are at that moment.

    Args:
        rule: what is computed.
        state: of the run; whoever has been told of a checkpoint or a certificate is noted there.
    """

    def __init__(self, rule: ServerRule, state: ServerState) -> None:
        self._rule = rule
        self._state = state

    def reply(self, worker: int, verdict: Verdict) -> Order:
        """Tell a worker what became of its push, and what to do now."""
        rule, state = self._rule, self._state
        entry = state.roll[worker]
        phase = rule.phase()
        save = state.saving.tell(worker)
        if save is not None:
            rule.kept(worker, save)
        certify = state.certification.tell(worker)
        if certify is not None:
            rule.mark(worker, state.certification.number)
        rewind, entry.rewinds = entry.rewinds, False
        going = state.going
        opening = task = None
        if going:
            entry.busy = True
            entry.version = state.version
            if entry.phase != phase.number:
                opening = rule.opening()
                entry.phase = phase.number
            task = Task(phase=phase, number=entry.number, version=state.version)
        reply = Reply(
            verdict=verdict,
            rewind=rewind,
            good=state.certification.good,
            save=save,
            certify=certify,
            era=state.era,
            opening=opening,
            task=task,
            answer=rule.answer(worker) if going else (),
            over=state.final is not None,
            at=state.trail.at,
        )
        return Order(worker=worker, message=reply)

    def discard(self, worker: int) -> Order:
        """Tell a worker that its push will never be applied, and what to do now."""
        entry = self._state.roll[worker]
        entry.held = None
        entry.number += 1
        return self.reply(worker, "discard")

    def news(self, besides: int) -> list[Order]:
        """Tell everybody else who computes the w of now."""
        state = self._state
        return [
            Order(
                worker=worker,
                message=News(
                    era=state.era,
                    version=state.version,
                    answer=self._rule.answer(worker),
                    at=state.trail.at,
                ),
            )
            for worker in state.roll
            if worker != besides and state.roll[worker].busy
        ]
