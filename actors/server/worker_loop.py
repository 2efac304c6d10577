"""The order of a worker of a parameter server: a reply comes in, a push goes out. No clock, no Ray.

Reply ──▶ commit or discard · rewind · keep for a checkpoint · certify · begin a phase
          then pieces of a message, each at the newest w that has come ──▶ Push
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from actors.errors import MechanismError
from actors.server.messages import News, Proof, Push, Reply
from actors.server.protocols import WorkerRule

__all__ = ["WorkerLoop"]


class WorkerLoop:
    """One worker.

    Args:
        rule: what is computed.
        save: takes a step and the rule's state, for a checkpoint.
    """

    def __init__(
        self, rule: WorkerRule, save: Callable[[int, Mapping[str, Any]], None] | None = None
    ) -> None:
        self.rule = rule
        self.over = False
        """Whether the run is over."""
        self.pieces_left = 0
        """Of the message that is being computed."""
        self._save = save
        self._reply: Reply | None = None
        self._news: News | None = None

    def replied(self, reply: Reply) -> Proof | None:
        """Do what a reply says, up to its task; return the part of a certificate it asks for."""
        if self.pieces_left:
            raise MechanismError("a reply came while its push was still being computed")
        if reply.verdict == "commit":
            self.rule.commit()
        elif reply.verdict == "discard":
            self.rule.discard()
        if reply.rewind:
            self.rule.rewind(reply.good)
        if reply.save is not None and self._save is not None:
            self._save(reply.save, self.rule.save())
        proof = None
        if reply.certify is not None:
            number, answer, _ = reply.certify
            self.rule.mark(number, reply.good)
            proof = Proof(number=number, certificate=self.rule.certify(answer))
        if reply.task is not None:
            if reply.opening is not None:
                self.rule.begin(reply.task.phase, reply.opening)
            self.pieces_left = reply.task.phase.pieces
        self._reply, self._news = reply, None
        self.over = reply.over
        return proof

    def heard(self, news: News) -> None:
        """A w came; it is used if it is newer than the one that there is."""
        reply = self._reply
        if reply is None or reply.task is None or news.era != reply.era:
            return
        if news.version > (reply.task.version if self._news is None else self._news.version):
            self._news = news

    def compute(self) -> Push | None:
        """Compute one piece; return the push when it was the last.

        Raises:
            MechanismError: there is nothing to compute.
        """
        reply = self._reply
        if reply is None or reply.task is None or not self.pieces_left:
            raise MechanismError("a worker must have a task to compute")
        piece = reply.task.phase.pieces - self.pieces_left
        answer = reply.answer if self._news is None else self._news.answer
        self.rule.work(reply.task, answer, piece)
        self.pieces_left -= 1
        if self.pieces_left:
            return None
        return Push(
            era=reply.era,
            phase=reply.task.phase.number,
            number=reply.task.number,
            tensors=self.rule.message(),
            samples=self.rule.samples(),
        )
