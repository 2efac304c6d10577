"""The average of a flat buffer over all replicas: as it is, or with fewer bytes.

What is sent in fewer bytes is a difference: to a reference that all replicas share, the mean of the
last average, for weights; to nothing for gradients. What was not sent is not lost:

    weights     send C(x - r);  r <- r + mean_j C(x^j - r);  m = r + (x - r_old - C(x - r_old))
    gradients   send C(g + e);  e <- g + e - C(g + e);       m = mean_j C(g^j + e^j)

The first is Qsparse-local-SGD (Basu, Data, Karakus and Diggavi 2019, alg. 1) but for one thing:
what a worker has not sent stays in its weights, where Qsparse keeps it in a memory beside them, so
that the sum over the workers of their m is that of their x, with any xi and d, and a checkpoint has
nothing more to hold than r. The second is SGD with memory (Stich, Cordonnier and Jaggi 2018,
eq. 5).
A sum of bfloat16 numbers is rounded to bfloat16, too; that much is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from raylab.algorithms.averaging.collective import Collective, Pending
from raylab.errors import ConfigError

__all__ = ["Average", "AverageDtype", "average_of", "check_compression"]

AverageDtype = Literal["float32", "bfloat16"]


class Average(Protocol):
    """The mean over all replicas, as one replica asks for it."""

    sent_bytes: int
    """Bytes of the messages that it has given away, before any protocol's overhead."""

    def start(self, flat: Tensor) -> Pending[Tensor]:
        """Start an average and wait for nothing; `flat` is given away, shape=(n,)."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a replica must keep between two averages."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` has returned."""
        ...


def check_compression(dtype: str, top_k: float | None) -> None:
    """Check how an average is to be sent.

    Raises:
        ConfigError: the dtype is unknown, or the share out of range.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"average_dtype must be float32 or bfloat16, but got {dtype!r}")
    number = isinstance(top_k, (int, float)) and not isinstance(top_k, bool)
    if top_k is not None and not (number and 0 < top_k <= 1):
        raise ConfigError(
            f"0 < average_top_k <= 1 must hold, the share of entries that are sent, but got "
            f"{top_k!r}: leave it out to send all"
        )


def average_of(
    seat: Collective,
    first: Tensor,
    *,
    averages: Literal["gradients", "weights"],
    dtype: str = "float32",
    top_k: float | None = None,
) -> Average:
    """Return how a replica averages.

    Args:
        seat: of the replica.
        first: the weights that all replicas begin with, flat, shape=(n,).
        averages: what is averaged.
        dtype: of what is sent; "float32" sends it as it is.
        top_k: share of the entries that are sent, the largest ones; None: all.

    Raises:
        ConfigError: see `check_compression`.
    """
    check_compression(dtype, top_k)
    if dtype == "float32" and top_k is None:
        return _Dense(seat)
    sparse = None if top_k is None else max(1, math.ceil(top_k * first.numel()))
    narrow = torch.bfloat16 if dtype == "bfloat16" else None
    return _Compressed(seat, first, averages == "weights", narrow, sparse)


class _Dense:
    """All entries, as they are."""

    def __init__(self, seat: Collective) -> None:
        self.sent_bytes = 0
        self._seat = seat

    def start(self, flat: Tensor) -> Pending[Tensor]:
        self.sent_bytes += flat.numel() * flat.element_size()
        size, under_way = self._seat.size, self._seat.sum(flat)
        return _Later(lambda: under_way.wait().div_(size))

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


class _Compressed:
    """Differences in fewer bytes.

    Args:
        seat: of the replica.
        first: that all replicas begin with.
        shared: the difference is to a reference that all share (weights), else to nothing.
        narrow: dtype of what is sent.
        entries: largest ones that are sent; None: all.
    """

    def __init__(
        self,
        seat: Collective,
        first: Tensor,
        shared: bool,
        narrow: torch.dtype | None,
        entries: int | None,
    ) -> None:
        self.sent_bytes = 0
        self._seat = seat
        self._shared = shared
        self._narrow = narrow
        self._entries = entries
        # The reference of weights, or what was not sent yet of gradients.
        self._kept = first.clone() if shared else torch.zeros_like(first)

    def start(self, flat: Tensor) -> Pending[Tensor]:
        if flat.numel() != self._kept.numel():
            raise ConfigError(
                "averages in fewer bytes are of weights or gradients alone, but this optimiser "
                "averages norms of samples, too: leave average_dtype and average_top_k out, or "
                "choose a method that averages weights"
            )
        wanted = flat.sub_(self._kept) if self._shared else flat.add_(self._kept)
        sent, mean = self._dense(wanted) if self._entries is None else self._sparse(wanted)
        rest = wanted.sub_(sent)
        if not self._shared:
            self._kept = rest
            return _Later(mean)

        def merged() -> Tensor:
            self._kept = self._kept + mean()
            return rest.add_(self._kept)

        return _Later(merged)

    def state(self) -> dict[str, Any]:
        return {"kept": self._kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._kept = state["kept"].to(self._kept)

    def _dense(self, wanted: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        narrowed = wanted.to(self._narrow, copy=True)
        sent = narrowed.to(wanted.dtype, copy=True)
        self.sent_bytes += narrowed.numel() * narrowed.element_size()
        under_way = self._seat.sum(narrowed)
        return sent, lambda: under_way.wait().to(sent.dtype).div_(self._seat.size)

    def _sparse(self, wanted: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        assert self._entries is not None  # noqa: S101 - `start` has looked
        places = wanted.abs().topk(self._entries, sorted=False).indices
        values = wanted[places].to(self._narrow or wanted.dtype)
        sent = torch.zeros_like(wanted)
        sent[places] = values.to(sent.dtype)
        short = places.to(torch.int32 if wanted.numel() < 2**31 else torch.int64)
        for each in (short, values):
            self.sent_bytes += each.numel() * each.element_size()
        all_places, all_values = self._seat.gather(short), self._seat.gather(values)

        def mean() -> Tensor:
            total = torch.zeros_like(sent)
            # In the order of the workers, so that all come to the same bits.
            for where, what in zip(all_places.wait(), all_values.wait(), strict=True):
                total.index_add_(0, where.long(), what.to(total.dtype))
            return total.div_(self._seat.size)

        return sent, mean


class _Later:
    def __init__(self, finish: Callable[[], Tensor]) -> None:
        self._finish = finish

    def wait(self) -> Tensor:
        return self._finish()
