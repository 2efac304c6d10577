"""A vector that is sent again and again: whole, or what has changed of it where that is smaller.

An answer is a vector, and perhaps some numbers behind it, which always go whole. The server's rule
names the coordinates that each update changes, and a trail of them tells what differs between any
two of the last answers: nobody compares vectors. A link keeps the order of its messages, so that
what the receiver puts together has the sender's bits.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.errors import MailboxError
from actors.units import Tensors

__all__ = ["ChangesIn", "ChangesOut", "Trail", "sent_tensors"]

_INDEX_BYTES = 4
_LONGEST, _MOST = 1024, 1 << 18
"""Updates that a trail remembers, and coordinates of all of them."""
_WORTH = 0.5
"""Changes go if they are at most so many of the vector's bytes: to gather them and to put them in
their places costs, too."""
_VECTORS = {torch.float64, torch.float32}

Places = NDArray[np.integer]


def sent_tensors(how: int) -> int:
    """Return how many tensors are sent: those of the answer, and one more for changes."""
    return how if how >= 0 else 1 - how


class Trail:
    """Which coordinates the last updates have changed."""

    def __init__(self) -> None:
        self.at = 0
        """How many updates there have been."""
        self._steps: deque[Places] = deque()
        self._places = 0

    def add(self, changed: Tensor | None) -> None:
        """An update has changed these coordinates; None: any."""
        self.at += 1
        steps = self._steps
        if changed is None:
            steps.clear()
            self._places = 0
            return
        places = changed.numpy()
        steps.append(places)
        self._places += len(places)
        while self._places > _MOST or len(steps) > _LONGEST:
            self._places -= len(steps.popleft())

    def between(self, one: int, other: int, most: float) -> Places | None:
        """Return where the vector may differ after so many updates and after so many others, some
        perhaps several times; None: that is not known, or they are more than `most`.
        """
        low, high = min(one, other), max(one, other)
        begin = self.at - len(self._steps)
        if low < begin:
            return None
        steps = [self._steps[place] for place in range(low - begin, high - begin)]
        if sum([len(step) for step in steps]) > most:
            return None
        if len(steps) == 1:
            return steps[0]
        return np.concatenate(steps) if steps else np.empty(0, dtype=np.int32)


class ChangesOut:
    """The sender's end of one link."""

    def __init__(self) -> None:
        self._at = -1
        self._length = -1

    def pack(self, answer: Tensors, at: int = 0, trail: Trail | None = None) -> tuple[int, Tensors]:
        """Return how an answer is sent, and the tensors to send.

        Nobody may write to its tensors any more. How is their number; below 0, its first tensor is
        sent as indices and values.

        Args:
            answer: to be sent.
            at: updates behind it, as the trail counts them.
            trail: of the updates; None: nothing is known of them.
        """
        count = len(answer)
        vector = answer[0] if count else None
        if vector is None or vector.ndim != 1 or vector.dtype not in _VECTORS:
            return count, answer
        length = vector.shape[0]
        before, known = self._at, self._length == length
        self._at, self._length = at, length
        if trail is None or not known:
            return count, answer
        each = vector.itemsize
        places = trail.between(before, at, _WORTH * length * each / (each + _INDEX_BYTES))
        if places is None:
            return count, answer
        values = torch.from_numpy(vector.numpy().take(places))
        where = torch.from_numpy(places.astype(np.int32, copy=False))
        return -count, (where, values, *answer[1:])


class ChangesIn:
    """The receiver's end."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def unpack(self, how: int, sent: Tensors, *, keep: bool = False) -> Tensors:
        """Return the answer: its vector is written to when the next one comes as changes, unless it
        is to be kept.

        Raises:
            MailboxError: changes came of a vector that never did.
        """
        if how >= 0:
            vector = sent[0] if sent else None
            if vector is not None and vector.ndim == 1 and vector.dtype in _VECTORS:
                self._last = vector.clone() if keep else vector
            return sent
        where, values, *rest = sent
        vector = self._last
        if vector is None or where is None or values is None:
            raise MailboxError("changes came of a vector that never did")
        # numpy takes longer to convert the indices one by one.
        vector.numpy()[where.numpy().astype(np.intp)] = values.numpy()
        return (vector.clone() if keep else vector, *rest)
