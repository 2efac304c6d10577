"""What joins the server with one worker."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from actors.server.changes import Trail
from actors.server.exchange import ServerSide
from actors.server.messages import News, Reply
from actors.wires.doorbell import Doorbell
from actors.wires.mailbox import Inbox, Outbox

__all__ = ["Seat"]


@dataclass(slots=True)
class Seat:
    """What joins the server with one worker.

    Args:
        inbox: of its pushes and proofs.
        outbox: of replies and news to it.
    """

    inbox: Inbox
    outbox: Outbox
    side: ServerSide = field(default_factory=ServerSide)
    replies: deque[Reply | News] = field(default_factory=deque)
    """That wait for a credit, or slices of them."""
    news: News | None = None
    """The newest, if it waits for a credit: an older one need not be sent any more."""
    waited_s: float = 0.0
    """That the worker has waited for replies."""
    _watched: bool = False
    """Whether the bell tells of credits."""

    @property
    def polled(self) -> bool:
        """Whether a poller tells that a message is there."""
        return bool(self.inbox.sockets)

    @property
    def carried_bytes(self) -> int:
        """Bytes of tensors that have passed, both ways."""
        return self.inbox.statistics.bytes + self.outbox.statistics.bytes

    def send(self, trail: Trail, bell: Doorbell[tuple[str, int]], worker: int) -> bool:
        """Send what there is a credit for, and let `bell` tell of credits for the rest; tell
        whether anything was sent.

        Args:
            trail: of the updates of what the answers are.
            bell: that rings for the server.
            worker: whose seat this is.
        """
        moved = self._flush(trail)
        if self.waiting is not self._watched:
            self._watched = not self._watched
            if self._watched:
                bell.watch(("out", worker), self.outbox.sockets)
            else:
                bell.leave(("out", worker))
        return moved

    @property
    def waiting(self) -> bool:
        """Whether something is to be sent that has no credit yet."""
        return bool(self.replies) or self.news is not None

    def _flush(self, trail: Trail) -> bool:
        moved = False
        while self.replies and self.outbox.has_room():
            self.outbox.put(self.side.packed(self.replies.popleft(), trail))
            moved = True
        # The last credit is for a reply.
        if self.news is not None and not self.replies and self.outbox.has_room(2):
            news, self.news = self.news, None
            self.outbox.put(self.side.packed(news, trail))
            moved = True
        return moved
