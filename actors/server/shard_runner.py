"""A shard that is not the first, at work: slices of whichever worker and the log into its loop.

No Ray in here: the same runner runs in an actor, and with all others in one process for a test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from actors.errors import LinkError
from actors.groups.story import told
from actors.server.exchange import Part, WorkerSide
from actors.server.messages import News, Proof
from actors.server.seat import Seat
from actors.server.shard_links import BYTES
from actors.server.shard_log import entries_of, message_of
from actors.server.shard_loop import ShardLoop, Told
from actors.wires.doorbell import Doorbell
from actors.wires.mailbox import Inbox, Outbox
from actors.wires.messages import Kind

__all__ = ["ShardRunner", "part_of"]

_LOG = ("log", -1)
_ACKS = ("acks", -1)


class ShardRunner:
    """Run one shard to its end.

    Args:
        loop: of the shard.
        log: from the first server.
        acks: to it.
        bell: to wait at.
        who: it is, in errors.
        carried_bytes: in a run that this one goes on with.
    """

    def __init__(
        self,
        loop: ShardLoop,
        log: Inbox,
        acks: Outbox,
        *,
        bell: Doorbell[tuple[str, int]],
        who: str,
        carried_bytes: int = 0,
    ) -> None:
        self.loop = loop
        self._log = log
        self._acks = acks
        self._bell = bell
        self._who = who
        self._seats: dict[int, Seat] = {}
        self._side = WorkerSide()
        self._closed_bytes = carried_bytes
        """Of links that are closed."""
        bell.watch(_LOG, log.sockets)

    def join(self, worker: int, seat: Seat) -> None:
        """Take in a worker, before the first server does."""
        self.loop.comes(worker)
        self._seats[worker] = seat
        self._bell.watch(("in", worker), seat.inbox.sockets)

    def lose(self, worker: int) -> None:
        """A worker is lost, or its link: close it."""
        seat = self._seats.pop(worker, None)
        if seat is not None:
            for side in ("in", "out"):
                self._bell.leave((side, worker))
            self._closed_bytes += seat.carried_bytes
            seat.inbox.close()
            seat.outbox.close()

    @property
    def finished(self) -> bool:
        """Whether the run is over, and everybody knows."""
        return self.loop.over and not any(seat.replies for seat in self._seats.values())

    @property
    def carried_bytes(self) -> int:
        """Bytes of tensors that have passed between workers and this shard, both ways."""
        return self._closed_bytes + sum(seat.carried_bytes for seat in self._seats.values())

    def advance(self, timeout_s: float = 0.0) -> bool:
        """Do what can be done, waiting up to `timeout_s` for the first message.

        Returns:
            Whether anything was done.

        Raises:
            LinkError: the first server is gone.
            StageError: the rule failed; the message tells at what.
        """
        ready = self._bell.wait(timeout_s)
        moved = False
        for worker, seat in list(self._seats.items()):
            if ("in", worker) in ready or not seat.inbox.sockets:
                moved |= self._hear(worker, seat)
        if _LOG in ready or not self._log.sockets:
            moved |= self._follow()
        for worker, seat in self._seats.items():
            if seat.waiting:
                moved |= seat.send(self.loop.trail, self._bell, worker)
        return self._acknowledge() or moved

    def settle(self, timeout_s: float) -> None:
        """Wait until everybody has taken what was sent to them."""
        for outbox in (*(seat.outbox for seat in self._seats.values()), self._acks):
            with contextlib.suppress(LinkError):
                outbox.settle(timeout_s)

    # ----------------------------------------------------------------- inside

    def _hear(self, worker: int, seat: Seat) -> bool:
        moved = False
        try:
            while (message := seat.inbox.take()) is not None:
                moved = True
                self.loop.heard(worker, seat.side.unpacked(message))
            seat.inbox.check()
        except LinkError:
            # The first server misses it, too, or the worker will say that this one is missing.
            self.lose(worker)
        return moved

    def _follow(self) -> bool:
        moved = False
        while (message := self._log.take()) is not None:
            moved = True
            with told(self._who, "what the first server has told"):
                found = self.loop.follow(entries_of(message))
            for each in found:
                self._tell(each)
        if not self.loop.over:
            self._log.check()
        return moved

    def _tell(self, told_: Told) -> None:
        seat = self._seats.get(told_.worker)
        if seat is None:
            return
        news = News(
            era=int(told_.snapshot), version=told_.serial, answer=told_.tensors, at=told_.at
        )
        if told_.needed:
            seat.news = None
            seat.replies.append(news)
        else:
            seat.news = news
        seat.send(self.loop.trail, self._bell, told_.worker)

    def _acknowledge(self) -> bool:
        """Tell the first server what has come, and what was measured, as far as there is room."""
        loop, moved = self.loop, False
        while loop.measured and self._acks.has_room():
            number, sums = loop.measured.pop(0)
            part = Part(values={**sums, BYTES: float(self.carried_bytes)}, tensors={})
            self._acks.put(self._side.packed(Proof(number=number, certificate=part)))
            moved = True
        if loop.acks and self._acks.has_room():
            self._acks.put(message_of(Kind.ACKS, loop.acks))
            loop.acks = []
            moved = True
        if loop.acks or loop.measured:
            self._bell.watch(_ACKS, self._acks.sockets)
        else:
            self._bell.leave(_ACKS)
        return moved


def part_of(step: int, state: Mapping[str, Any], carried_bytes: int) -> dict[str, Any]:
    """Return what a shard keeps for a checkpoint."""
    return {"step": step, "rule": dict(state), "figures": {BYTES: carried_bytes}}
