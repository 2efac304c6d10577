"""A vector that is sent again and again: whole, or what has changed of it where that is smaller.

An answer is a vector, and perhaps some numbers behind it, which always go whole. Both ends of a
link remember the last vector that passed, and a link keeps the order of its messages, so that what
the receiver puts together has the sender's bits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.errors import MailboxError
from actors.units import Tensors

__all__ = ["ChangesIn", "ChangesOut", "sent_tensors"]

_BITS = {torch.float64: np.int64, torch.float32: np.int32}
_INDEX_BYTES = 4
_SHORTEST = 64
"""Elements of a vector below which a second frame costs more than it saves."""
_LONGEST_PAUSE = 64


def sent_tensors(how: int) -> int:
    """Return how many tensors are sent: those of the answer, and one more for changes."""
    return how if how >= 0 else 1 - how


class ChangesOut:
    """The sender's end."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._pause = 0
        self._skip = 0

    def pack(self, answer: Tensors) -> tuple[int, Tensors]:
        """Return how an answer is sent, and the tensors to send.

        Nobody may write to its tensors any more. How is their number; below 0, its first tensor is
        sent as indices and values.
        """
        vector = answer[0] if answer else None
        if vector is None or vector.ndim != 1 or vector.dtype not in _BITS:
            return len(answer), answer
        last, self._last = self._last, vector
        if last is None or last.shape != vector.shape or last.dtype != vector.dtype:
            return len(answer), answer
        changed = self._changed(last, vector)
        if changed is None:
            return len(answer), answer
        values = torch.from_numpy(vector.numpy()[changed])
        return -len(answer), (torch.from_numpy(changed.astype(np.int32)), values, *answer[1:])

    def _changed(self, last: Tensor, vector: Tensor) -> NDArray[np.intp] | None:
        """Return where two vectors differ, None where that is not worth telling."""
        if vector.numel() < _SHORTEST:
            return None
        if last.data_ptr() == vector.data_ptr():
            return np.empty(0, dtype=np.intp)
        # Where all of it changes every time, it is seldom worth looking.
        if self._skip:
            self._skip -= 1
            return None
        bits = _BITS[vector.dtype]
        # Of the arrays on the same memory: several times as fast as torch at this.
        differs = vector.numpy().view(bits) != last.numpy().view(bits)
        each = vector.element_size()
        if int(np.count_nonzero(differs)) * (each + _INDEX_BYTES) >= vector.numel() * each:
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause + 1)
            self._skip = self._pause
            return None
        self._pause = 0
        return np.flatnonzero(differs)


class ChangesIn:
    """The receiver's end."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def unpack(self, how: int, sent: Tensors) -> Tensors:
        """Return the answer.

        Raises:
            MailboxError: changes came of a vector that never did.
        """
        if how >= 0:
            vector = sent[0] if sent else None
            if vector is not None and vector.ndim == 1 and vector.dtype in _BITS:
                self._last = vector
            return sent
        where, values, *rest = sent
        if self._last is None or where is None or values is None:
            raise MailboxError("changes came of a vector that never did")
        changed = self._last.clone()
        changed.numpy()[where.numpy()] = values.numpy()
        self._last = changed
        return (changed, *rest)
