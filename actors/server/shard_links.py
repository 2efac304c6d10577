"""The first server's end of its links to the other shards: the log out, acks and sums in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.server.exchange import ServerSide
from actors.server.lead import Lead
from actors.server.messages import Proof, Push
from actors.server.shard_log import SliceRule, entries_of, message_of
from actors.wires.doorbell import Doorbell
from actors.wires.mailbox import Inbox, Outbox
from actors.wires.messages import Kind

__all__ = ["BYTES", "ShardLinks"]

BYTES = "bytes"
"""Among what a shard has measured: bytes of tensors that have passed between it and the workers."""


class ShardLinks:
    """What the first server has of the other shards.

    Args:
        rule: of its own slice.
        boxes: of each other shard: of its acks, of its log.
        bell: to wait at.
        meanwhile: called again and again while sums are waited for; raises if the run is to end.
        patience_s: how long to wait between two of these calls.
    """

    def __init__(
        self,
        rule: SliceRule,
        boxes: Sequence[tuple[Inbox, Outbox]],
        bell: Doorbell[tuple[str, int]],
        meanwhile: Callable[[], object],
        patience_s: float = 0.2,
    ) -> None:
        self.lead = Lead(rule, len(boxes), self._ask)
        self._boxes = boxes
        self._bell = bell
        self._meanwhile = meanwhile
        self._patience_s = patience_s
        self._side = ServerSide()
        self._measured: list[Proof | None] = [None for _ in boxes]
        for shard, (inbox, _) in enumerate(boxes):
            bell.watch(("acks", shard), inbox.sockets)

    def hear(self, ready: set[tuple[str, int]]) -> bool:
        """Take what has come, as far as something is ready or rings; tell whether anything had.

        Raises:
            LinkError: a shard is gone.
        """
        moved = False
        for shard, (inbox, _) in enumerate(self._boxes):
            if ("acks", shard) in ready or not inbox.sockets:
                moved |= self._take(shard)
        return moved

    def whole(self) -> tuple[int, Push | Proof] | None:
        """Take the next message that has come with all slices, see `Lead.whole`."""
        return self.lead.whole()

    def flush(self) -> None:
        """Send the log, if every shard has room for a piece of it; else it goes with the next."""
        if not self.lead.log:
            return
        if not all(outbox.has_room() for _, outbox in self._boxes):
            for shard, (_, outbox) in enumerate(self._boxes):
                self._bell.watch(("log", shard), outbox.sockets)
            return
        message = message_of(Kind.LOG, self.lead.log)
        self.lead.log = []
        for shard, (_, outbox) in enumerate(self._boxes):
            outbox.put(message)
            self._bell.leave(("log", shard))

    def settle(self, timeout_s: float) -> None:
        """Let the other shards end, and wait until they have taken what was sent to them."""
        self.lead.over()
        for _, outbox in self._boxes:
            outbox.ready(timeout_s)
        self.flush()
        for _, outbox in self._boxes:
            outbox.settle(timeout_s)

    def in_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of metrics with the bytes of all shards, as they were at its certificate."""
        others = [int(each.certificate.values[BYTES]) for each in self._measured if each]
        own = row[BYTES]
        return {**row, BYTES: own + sum(others), "server_bytes": [own, *others]}

    # ----------------------------------------------------------------- inside

    def _take(self, shard: int, timeout_s: float = 0.0) -> bool:
        inbox, moved = self._boxes[shard][0], False
        while (message := inbox.take(timeout_s)) is not None:
            moved, timeout_s = True, 0.0
            if message.kind is Kind.PROOF:
                told = self._side.unpacked(message)
                self._measured[shard] = told if isinstance(told, Proof) else None
            else:
                for ack in entries_of(message):
                    self.lead.acked(shard, ack)
        inbox.check()
        return moved

    def _ask(self, number: int) -> list[Mapping[str, float]]:
        """Return what all shards have measured; they are as far as the log, in a moment."""
        self.flush()
        found = []
        for shard, (_, outbox) in enumerate(self._boxes):
            while (proof := self._measured[shard]) is None or proof.number != number:
                self._meanwhile()
                if self.lead.log and outbox.ready(self._patience_s):
                    self.flush()
                self._take(shard, self._patience_s)
            found.append(proof.certificate.values)
        return found
