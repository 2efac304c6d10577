"""A worker at work: replies into its loop, its pushes and proofs to the server.

No Ray in here: the same runner runs in an actor, and with the server in one process for a test.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from actors.mailbox import Inbox, Outbox
from actors.messages import Message
from actors.server_messages import News, Push
from actors.server_wire import WorkerSide
from actors.server_worker import WorkerLoop
from actors.story import told

__all__ = ["Straggler", "WorkerRunner"]


class Straggler(Protocol):
    """Makes workers slow."""

    def delay_s(self, worker: int, message: int, compute_s: float) -> float:
        """Return by how much one message comes later than its computation lets it, in seconds.

        Args:
            worker: from 0.
            message: its number.
            compute_s: what its computation takes.
        """
        ...


class WorkerRunner:
    """Run one worker to its end.

    Args:
        loop: of the worker.
        worker: its number.
        inbox: of replies and news.
        outbox: of pushes and proofs.
        nap: waits for so many seconds without computing, or until the run is to end.
        straggler: that slows it down.
        compute_s: time that the computation of a message is to take, of which what it really
            takes is a part; None: what it really takes.
    """

    def __init__(
        self,
        loop: WorkerLoop,
        worker: int,
        inbox: Inbox,
        outbox: Outbox,
        *,
        nap: Callable[[float], object] = time.sleep,
        straggler: Straggler | None = None,
        compute_s: float | None = None,
    ) -> None:
        self.loop = loop
        self.waited_s = 0.0
        """For replies, in all."""
        self.messages = 0
        """Pushes made."""
        self._worker = worker
        self._who = f"worker {worker}"
        self._number = 0
        self._inbox = inbox
        self._outbox = outbox
        self._side = WorkerSide()
        self._nap = nap
        self._straggler = straggler
        self._compute_s = compute_s
        self._outgoing: deque[Message] = deque()
        self._spent_s = 0.0

    @property
    def finished(self) -> bool:
        """Whether the run is over, for this worker, and nothing is left to say."""
        return self.loop.over and not self._outgoing

    def run(self, stopped: Callable[[], bool], patience_s: float = 0.2) -> None:
        """Run until the end, or until `stopped` says so; it is asked every `patience_s`."""
        while not self.finished and not stopped():
            self.advance(patience_s)

    def advance(self, timeout_s: float = 0.0) -> bool:
        """Do one thing, waiting up to `timeout_s` for a message or a credit.

        Returns:
            Whether anything was done.

        Raises:
            StageError: the rule failed; the message tells at what.
        """
        if self._outgoing:
            if not self._outbox.ready(timeout_s):
                return False
            self._outbox.put(self._outgoing.popleft())
            return True
        if not self.loop.pieces_left:
            started = time.perf_counter()
            message = self._inbox.take(timeout_s)
            self.waited_s += time.perf_counter() - started
            if message is not None:
                self._heard(message)
            return message is not None
        while (message := self._inbox.take()) is not None:
            self._heard(message)
        self._compute()
        return True

    def _heard(self, message: Message) -> None:
        heard = self._side.unpacked(message)
        if isinstance(heard, News):
            self.loop.heard(heard)
            return
        with told(self._who, f"the reply before message {message.index}"):
            proof = self.loop.replied(heard)
        self._number = message.index
        if proof is not None:
            self._outgoing.append(self._side.packed(proof))

    def _compute(self) -> None:
        pieces = self.loop.pieces_left
        started = time.perf_counter()
        with told(self._who, f"the computation of message {self._number}"):
            push = self.loop.compute()
        took_s = time.perf_counter() - started
        self._spent_s += took_s
        if self._compute_s is not None:
            # What is left of the time, in equal naps, so that news come in between.
            pause_s = (self._compute_s - self._spent_s) / pieces
            if pause_s > 0:
                self._nap(pause_s)
                self._spent_s += pause_s
        if push is not None:
            self._push(push)

    def _push(self, push: Push) -> None:
        spent_s, self._spent_s = self._spent_s, 0.0
        if self._straggler is not None:
            compute_s = spent_s if self._compute_s is None else self._compute_s
            delay_s = self._straggler.delay_s(self._worker, push.number, compute_s)
            if delay_s > 0:
                self._nap(delay_s)
        self.messages += 1
        self._outgoing.append(self._side.packed(replace(push, waited_s=self.waited_s)))
