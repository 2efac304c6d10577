"""Where a run goes: on, back to its last good certificate, or to its end."""

from __future__ import annotations

from actors.server.ends import Ends
from actors.server.messages import Order, Proof
from actors.server.protocols import ServerRule
from actors.server.replies import Replies
from actors.server.state import ServerState

__all__ = ["Course"]


class Course:
    """Asks for certificates, and does what follows from each.

    Args:
        rule: judges a certificate, and goes back.
        ends: of the run.
        state: of the run.
        replies: to the workers.
    """

    def __init__(self, rule: ServerRule, ends: Ends, state: ServerState, replies: Replies) -> None:
        self._rule = rule
        self._ends = ends
        self._state = state
        self._replies = replies

    def certify(self) -> None:
        """Begin a certificate at the w of now; each worker is told of it by its next reply."""
        state = self._state
        state.certification.begin(state.roll, self._rule.answer(-1), state.trail.at)

    def counted(self) -> None:
        """One more update is counted: begin the run's end, or a certificate, where it is due."""
        state = self._state
        state.ended_by = state.ended_by or self._ends.reached(state.samples, state.messages)
        if not state.ended_by and state.certification.due(state.samples):
            self.certify()

    def proved(self, worker: int, proof: Proof) -> list[Order]:
        """A worker's part of a certificate came; what follows from the whole, with the last."""
        state = self._state
        certification = state.certification
        parts = certification.took(worker, proof)
        if parts is None:
            return []
        figures = self._rule.certify(parts, certification.answer)
        state.add_row(figures, self._rule.report())
        extra, state.between = state.between and self._synchronous, False
        if self._ends.good_enough(figures) and not (extra and not state.ended_by):
            state.ended_by = "tolerance"
            return self.finish()
        if state.ended_by:
            return self._over() if certification.last else self.finish()
        reason = self._rule.judge(figures)
        if reason is None:
            certification.good = certification.number
            return []
        state.rows[-1]["rewound"] = reason
        return self._rewind()

    @property
    def _synchronous(self) -> bool:
        """Whether the run is to come to the same w as one that was not interrupted, and so must not
        end by a certificate that the other one does not make.
        """
        return self._rule.phase().gather or len(self._state.roll) == 1

    def _rewind(self) -> list[Order]:
        """Go back to the last good certificate; what is under way will be discarded."""
        rule, state = self._rule, self._state
        state.era += 1
        phase = rule.phase().number
        rule.rewind(state.certification.good)
        state.trail.add(None)
        if rule.phase().number != phase:
            state.in_phase = 0
        orders = []
        for worker in state.roll:
            entry = state.roll[worker]
            if entry.away:
                # The process that will come has no marks, only what was kept.
                rule.take_back(worker, entry.step)
                state.trail.add(None)
                continue
            entry.rewinds = True
            if entry.held is not None:
                orders.append(self._replies.discard(worker))
        return orders

    def finish(self) -> list[Order]:
        """Once the run has ended and nothing is under way, certify what there is, and stop all."""
        state = self._state
        if not state.ended_by or not state.roll.idle or state.final is not None:
            return []
        if not state.certification.open:
            if state.ended_by == "tolerance":
                return self._over()
            state.certification.last = True
            self.certify()
        # Nobody pushes any more, so nobody would be told of a certificate by an answer.
        return [
            self._replies.reply(worker, "none")
            for worker in state.roll.present()
            if state.certification.untold(worker)
        ]

    def _over(self) -> list[Order]:
        """End with what the last certificate is of."""
        state = self._state
        state.final = state.certification.answer
        return [self._replies.reply(worker, "none") for worker in state.roll.present()]
