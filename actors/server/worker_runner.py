"""A worker at work: replies into its loop, its pushes and proofs to the server.

No Ray in here: the same runner runs in an actor, and with the server in one process for a test.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from actors.groups.story import told
from actors.server.exchange import WorkerSide
from actors.server.messages import News, Proof, Push, Reply
from actors.server.slices import Slices
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
        slices: what is sent to several shards of the server, and heard from them; None: of one.
        shards: boxes from and to the shards other than the first.
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
        slices: Slices | None = None,
        shards: Sequence[tuple[Inbox, Outbox]] = (),
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
        self._slices = slices
        self._shards = [(*boxes, WorkerSide()) for boxes in shards]
        self._incomplete: Reply | News | None = None
        self._nap = nap
        self._straggler = straggler
        self._sample_s = sample_s
        self._die = die
        self._outgoing: deque[tuple[Outbox, Message]] = deque()

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
            outbox, message = self._outgoing[0]
            if not (outbox.has_room() or outbox.ready(timeout_s)):
                return False
            self._outgoing.popleft()
            outbox.put(message)
            return True
        if not self.loop.pieces_left:
            started = time.perf_counter()
            moved = self._listen(timeout_s)
            self.waited_s += time.perf_counter() - started
            return moved
        # What a reply has brought is new; between the pieces of a message newer may come.
        while self._piece and self._listen(0.0):
            pass
        self._compute()
        return True

    def _listen(self, timeout_s: float) -> bool:
        """Take one message of the server, or one slice that is missing; tell whether there was one.

        A reply waits for its slices. News do not make anybody wait.
        """
        if not isinstance(self._incomplete, Reply):
            message = self._inbox.take(timeout_s, ahead=False)
            if message is not None:
                self._incomplete = self._side.unpacked(message)
                self._hear_whole(self._incomplete)
                return True
            timeout_s = 0.0
        heard, slices = self._incomplete, self._slices
        shard = None if heard is None or slices is None else slices.lacking(heard)
        if heard is None or slices is None or shard is None:
            return False
        inbox, _, side = self._shards[shard]
        message = inbox.take(timeout_s, ahead=False)
        if message is None:
            return False
        slices.heard(shard, side.unpacked(message))
        self._hear_whole(heard)
        return True

    def _hear_whole(self, heard: Reply | News) -> None:
        """Hear what the server has told, unless a slice of it is missing."""
        if self._slices is not None:
            if self._slices.lacking(heard) is not None:
                return
            heard = self._slices.whole(heard)
        self._incomplete = None
        if isinstance(heard, News):
            self.loop.heard(heard)
            return
        if heard.verdict != "none":
            for outbox in (self._outbox, *(each for _, each, _ in self._shards)):
                outbox.answered()
        number = 0 if heard.task is None else heard.task.number
        with told(self._who, "the reply before message {}", number):
            proof = self.loop.replied(heard)
        self._number = number
        if proof is not None:
            self._say(proof)

    def _say(self, what: Push | Proof) -> None:
        """Send something to every shard, each its slice; to the first last, which waits for all."""
        if self._slices is None:
            self._outgoing.append((self._outbox, self._side.packed(what)))
            return
        first, *others = self._slices.cut(what)
        for (_, outbox, side), part in zip(self._shards, others, strict=True):
            self._outgoing.append((outbox, side.packed(part)))
        self._outgoing.append((self._outbox, self._side.packed(first)))

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
            self._say(push)
