"""One message between two stages: what it is for, what it belongs to, its tensors."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from actors.units import Tensors, Unit

__all__ = ["ANSWERED", "Kind", "Message", "size_bytes"]


class Kind(IntEnum):
    """What a message is for."""

    BATCH = 0
    """Features, labels or error gradients of one unit of training."""
    EVALUATE = 1
    """Features or labels of one test batch."""
    EPOCH = 2
    """Marker: the epoch `index` is over, report it."""
    DRAIN = 3
    """Marker: no training batch follows, the pipeline empties."""
    FINISH = 4
    """Marker: nothing follows."""
    TOKEN = 5
    """Lock step only: the sender's side of the pipeline has ended tick `index`."""
    PROBE = 6
    """Before a run: a payload that is sent back, to time the wire."""
    CHECKPOINT = 7
    """Marker: every stage saves what it is, with `index` batches behind it."""
    RECHECK = 8
    """A batch that is computed once more at the weights of now, for figures alone."""
    PUSH = 9
    """Worker to server: message `index`, see `actors.server.messages`, as all that follow."""
    PROOF = 10
    """Worker to server: its part of certificate `index`."""
    REPLY = 11
    """Server to worker: what became of its push, and a task; a push follows."""
    NEWS = 12
    """Server to worker: the w of update `index`."""
    WORD = 13
    """Server to worker: as REPLY, without a task."""
    LOG = 14
    """First server to the others: what to do, in its order."""
    ACKS = 15
    """Another server to the first: what has come."""


ANSWERED = frozenset({Kind.PUSH, Kind.REPLY})
"""Kinds that are answered: who hears the answer knows that the message was taken, and needs no
credit to be told so.
"""


class Message(NamedTuple):
    """One message; `tensors` are empty for markers and tokens, `words` are whole numbers beside
    them.
    """

    kind: Kind
    index: int  # type: ignore[assignment]  # a tuple's method, which nobody needs here
    tensors: Tensors = ()
    part: int = 0
    parts: int = 1
    share: float = 1.0
    words: tuple[int, ...] = ()
    loss_share: float = 1.0

    @classmethod
    def of(cls, unit: Unit, tensors: Tensors, kind: Kind = Kind.BATCH) -> Message:
        """Return the message that carries `tensors` of a unit of training."""
        return cls(
            *(kind, unit.batch, tensors, unit.part, unit.parts, unit.share),
            loss_share=unit.loss_share,
        )

    @property
    def unit(self) -> Unit:
        """The unit of training that a BATCH message belongs to."""
        return Unit(self.index, self.part, self.parts, self.share, self.loss_share)


def size_bytes(message: Message) -> int:
    """Return the bytes of the tensors of a message."""
    return sum([t.nbytes for t in message.tensors if t is not None])
