"""A worker at work: replies into its loop, its pushes and proofs to the server.

No Ray in here: the same runner runs in an actor, and with the server in one process for a test.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from actors.groups.story import told
from actors.server.exchange import WorkerSide
from actors.server.messages import News
from actors.server.worker_loop import WorkerLoop
from actors.wires.mailbox import Inbox, Outbox
from actors.wires.messages import Message

__all__ = ["Straggler", "WorkerRunner"]


class Straggler(Protocol):
    """Makes workers slow, or lets them die."""

    def delay_s(self, worker: int, message: int, compute_s: float) -> float:
        """Return by how much a piece of a message takes longer than its computation, in seconds.

        Args:
            worker: from 0.
            message: number of its task.
            compute_s: what the computation of the piece takes.
        """
        ...

    def dies(self, worker: int, message: int) -> bool:
        """Tell whether the worker dies in the middle of this message."""
        ...


class WorkerRunner:
    """Run one worker to its end.

    Args:
        loop: of the worker.
        worker: its number.
        inbox: of replies and news.
        outbox: of pushes and proofs.
        nap: waits for so many seconds without computing, or until the run is to end.
        die: ends the process at once, as a straggler may ask.
        straggler: that slows it down.
        sample_s: time that the computation of a sample is to take, of which what it really takes
            is a part; None: what it really takes.
    """

    def __init__(
        self,
        loop: WorkerLoop,
        worker: int,
        inbox: Inbox,
        outbox: Outbox,
        *,
        nap: Callable[[float], object] = time.sleep,
        die: Callable[[], object] | None = None,
        straggler: Straggler | None = None,
        sample_s: float | None = None,
    ) -> None:
        self.loop = loop
        self.waited_s = 0.0
        """For replies, in all."""
        self.messages = 0
        """Pushes made."""
        self._worker = worker
        self._who = f"worker {worker}"
        self._number = 0
        self._piece = 0
        self._inbox = inbox
        self._outbox = outbox
        self._side = WorkerSide()
        self._nap = nap
        self._straggler = straggler
        self._sample_s = sample_s
        self._die = die
        self._outgoing: deque[Message] = deque()

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
            if not (self._outbox.has_room() or self._outbox.ready(timeout_s)):
                return False
            self._outbox.put(self._outgoing.popleft())
            return True
        if not self.loop.pieces_left:
            started = time.perf_counter()
            message = self._inbox.take(timeout_s, ahead=False)
            self.waited_s += time.perf_counter() - started
            if message is not None:
                self._heard(message)
            return message is not None
        # What a reply has brought is new; between the pieces of a message newer may come.
        while self._piece and (message := self._inbox.take(ahead=False)) is not None:
            self._heard(message)
        self._compute()
        return True

    def _heard(self, message: Message) -> None:
        heard = self._side.unpacked(message)
        if isinstance(heard, News):
            self.loop.heard(heard)
            return
        if heard.verdict != "none":
            self._outbox.answered()
        with told(self._who, "the reply before message {}", message.index):
            proof = self.loop.replied(heard)
        self._number = message.index
        if proof is not None:
            self._outgoing.append(self._side.packed(proof))

    def _compute(self) -> None:
        """Compute a piece of a message, and take the time that it is to take."""
        rule, first = self.loop.rule, not self._piece
        before = 0 if first else rule.samples()
        started = time.perf_counter()
        with told(self._who, "the computation of message {}", self._number):
            push = self.loop.compute()
        took_s = time.perf_counter() - started
        self._piece = 0 if push is not None else self._piece + 1
        compute_s = took_s
        if self._sample_s is not None:
            compute_s = max(took_s, self._sample_s * (rule.samples() - before))
        pause_s = compute_s - took_s
        if self._straggler is not None:
            dies = push is not None and self._straggler.dies(self._worker, self._number)
            if dies and self._die is not None:
                self._nap(pause_s / 2)
                self._die()
            pause_s += self._straggler.delay_s(self._worker, self._number, compute_s)
        if pause_s > 0:
            self._nap(pause_s)
        if push is not None:
            self.messages += 1
            push.waited_s = self.waited_s
            self._outgoing.append(self._side.packed(push))
