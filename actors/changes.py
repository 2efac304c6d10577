"""A vector that is sent again and again: whole, or what has changed of it where that is smaller.

Both ends of a link remember the last vector that passed, and a link keeps the order of its
messages, so that what the receiver puts together has the sender's bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actors.errors import MailboxError
from actors.protocols import Tensors

__all__ = ["ChangesIn", "ChangesOut"]

_CHANGED = -1
_BITS = {torch.float64: torch.int64, torch.float32: torch.int32}
_SHORTEST = 64
"""Elements of a vector below which a second frame costs more than it saves."""
_LONGEST_PAUSE = 64


class ChangesOut:
    """The sender's end."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._pause = 0
        self._skip = 0

    def pack(self, answer: Tensors) -> tuple[int, Tensors]:
        """Return how an answer is sent, and the tensors to send.

        Its tensors must not be written to any more.
        """
        vector = answer[0] if len(answer) == 1 else None
        if vector is None or vector.ndim != 1 or vector.dtype not in _BITS:
            return len(answer), answer
        last, self._last = self._last, vector
        if last is None or last.shape != vector.shape or last.dtype != vector.dtype:
            return 1, answer
        if vector.numel() < _SHORTEST:
            return 1, answer
        # Where all of it changes every time, it is seldom worth looking.
        if self._skip:
            self._skip -= 1
            return 1, answer
        if last is vector:
            empty = vector[:0]
            return _CHANGED, (empty.to(torch.int32), empty)
        bits = _BITS[vector.dtype]
        changed = vector.view(bits) != last.view(bits)
        each = vector.element_size()
        if int(changed.count_nonzero()) * (each + 4) >= vector.numel() * each:
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause + 1)
            self._skip = self._pause
            return 1, answer
        self._pause = 0
        where = changed.nonzero().squeeze(1)
        return _CHANGED, (where.to(torch.int32), vector[where])


class ChangesIn:
    """The receiver's end."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def tensors(self, how: int) -> int:
        """Return how many tensors were sent."""
        return 2 if how == _CHANGED else how

    def unpack(self, how: int, sent: Tensors) -> Tensors:
        """Return the answer.

        Raises:
            MailboxError: changes came of a vector that never did.
        """
        if how != _CHANGED:
            if how == 1 and sent[0] is not None:
                self._last = sent[0]
            return sent
        where, values = sent
        if self._last is None or where is None or values is None:
            raise MailboxError("changes came of a vector that never did")
        vector = self._last.clone()
        vector[where.long()] = values
        self._last = vector
        return (vector,)
