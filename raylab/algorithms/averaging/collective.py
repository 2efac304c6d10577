"""What replicas do together: the seam to whatever carries it, and W of them in one process.

    seat.sum(flat) -> Pending        every replica calls the same, in the same order
    pending.wait() -> Tensor         the sum, the same bits for all

Nothing waits before `wait`. Under torch.distributed a seat is
`actors.averaging.collective.DistributedCollective`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor

__all__ = ["Collective", "Pending", "SerialCollectives", "gathered", "summed"]

T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """Something under way."""

    def wait(self) -> T_co:
        """Return it, once it is there."""
        ...


class Collective(Protocol):
    """One replica's seat among W."""

    @property
    def size(self) -> int:
        """Return W."""
        ...

    def sum(self, flat: Tensor) -> Pending[Tensor]:
        """Start the sum over all replicas; `flat` is given away and may be overwritten."""
        ...

    def gather(self, flat: Tensor) -> Pending[list[Tensor]]:
        """Start to collect every replica's tensor, all of one shape, in the order of the seats."""
        ...


def summed(seats: Sequence[Collective], flats: Sequence[Tensor]) -> Tensor:
    """Return the sum over all replicas, of which some are here.

    Args:
        seats: of the replicas that are here.
        flats: theirs, given away.
    """
    pending = [seat.sum(flat) for seat, flat in zip(seats, flats, strict=True)]
    found = [each.wait() for each in pending]
    return found[0]


def gathered(seats: Sequence[Collective], flats: Sequence[Tensor]) -> list[Tensor]:
    """Return every replica's tensor, of which some are here."""
    pending = [seat.gather(flat) for seat, flat in zip(seats, flats, strict=True)]
    found = [each.wait() for each in pending]
    return found[0]


class SerialCollectives:
    """The seats of W replicas in one process, for the serial reference and for simulation.

    A round is what all seats have put in; it is summed in the order of the seats once it is waited
    for, which must be after the last of them has put in its part.

    >>> import torch
    >>> left, right = SerialCollectives(2).seats
    >>> first, second = left.sum(torch.ones(2)), right.sum(torch.ones(2))
    >>> second.wait()
    tensor([2., 2.])

    Args:
        size: W.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.seats = [_Seat(self) for _ in range(size)]
        self._rounds: dict[int, list[Tensor]] = {}
        self._sums: dict[int, Tensor] = {}
        self._waited: dict[int, int] = {}

    def put(self, number: int, flat: Tensor) -> None:
        """Put one replica's part into a round."""
        self._rounds.setdefault(number, []).append(flat)

    def parts(self, number: int) -> list[Tensor]:
        """Return all parts of a round."""
        parts = self._rounds[number]
        if len(parts) < self.size:
            raise RuntimeError(f"{len(parts)} of {self.size} replicas have put in their part")
        self._done(number)
        return parts

    def total(self, number: int) -> Tensor:
        """Return the sum of a round, a tensor of the caller's own."""
        if number not in self._sums:
            parts = self._rounds[number]
            if len(parts) < self.size:
                raise RuntimeError(f"{len(parts)} of {self.size} replicas have put in their part")
            total = parts[0].clone()
            for part in parts[1:]:
                total += part
            self._sums[number] = total
        total = self._sums[number]
        self._done(number)
        return total.clone()

    def _done(self, number: int) -> None:
        self._waited[number] = self._waited.get(number, 0) + 1
        if self._waited[number] == self.size:
            del self._rounds[number], self._waited[number]
            self._sums.pop(number, None)


class _Seat:
    def __init__(self, group: SerialCollectives) -> None:
        self._group = group
        self._number = 0

    @property
    def size(self) -> int:
        return self._group.size

    def sum(self, flat: Tensor) -> Pending[Tensor]:
        return _Sum(self._group, self._put(flat))

    def gather(self, flat: Tensor) -> Pending[list[Tensor]]:
        return _Parts(self._group, self._put(flat))

    def _put(self, flat: Tensor) -> int:
        self._group.put(self._number, flat)
        self._number += 1
        return self._number - 1


class _Sum:
    def __init__(self, group: SerialCollectives, number: int) -> None:
        self._group, self._number = group, number

    def wait(self) -> Tensor:
        return self._group.total(self._number)


class _Parts:
    def __init__(self, group: SerialCollectives, number: int) -> None:
        self._group, self._number = group, number

    def wait(self) -> list[Tensor]:
        return self._group.parts(self._number)
