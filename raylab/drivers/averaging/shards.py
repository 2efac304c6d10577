"""An epoch's batches, dealt out to the workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from raylab.algorithms.stage.settings import draw_key
from raylab.drivers.batches import batches_of, first_of
from raylab.errors import DataError

__all__ = ["Shards", "first_batch"]


def first_batch(batches: Iterable[Any]) -> tuple[Any, Any]:
    """Return x and y of the first batch.

    Raises:
        DataError: there is none, it is not one, or there can be no second time.
    """
    return _pair(first_of(batches))


class Shards:
    """The rounds of an epoch: in each, every worker gets a batch of its own.

    Worker j of W gets batches a + j, a + W + j, ... of an epoch that a batches are taken of. The
    last round is filled up with batches from the epoch's beginning, so that all workers do equally
    many steps and no batch is left out. Where batches can be made one by one (`batch(index)`, or a
    sequence) a worker makes its own only; of anything else that can be iterated over it passes over
    the others', and what that draws from torch's generator is keyed by seed and epoch, the same for
    all workers.

    >>> shards = Shards(["abcde"[i] * 2 for i in range(5)], seed=0)
    >>> [batch for (batch,) in shards.rounds(epoch=0, taken=0, workers=3, ranks=[1])]
    [('b', 'b'), ('e', 'e')]

    Args:
        batches: re-iterable of (x, y); its `set_epoch(epoch)` is called if there is one.
        seed: of the run.
    """

    def __init__(self, batches: Iterable[Any], seed: int) -> None:
        self._batches = batches
        self._seed = seed

    def rounds(
        self, epoch: int, taken: int, workers: int, ranks: Sequence[int]
    ) -> Iterator[list[tuple[Any, Any]]]:
        """Yield, round after round, the batches of some workers.

        Args:
            epoch: from 0.
            taken: batches of it that were taken before.
            workers: W.
            ranks: of the workers whose batches are wanted.

        Raises:
            DataError: a batch is not a pair, or there is none.
        """
        if hasattr(self._batches, "set_epoch"):
            self._batches.set_epoch(epoch)
        count = batches_of(self._batches)
        one = getattr(self._batches, "batch", None)
        if one is None and isinstance(self._batches, Sequence):
            one = self._batches.__getitem__
        if count is not None and one is not None:
            for start in range(taken, count, workers):
                yield [_pair(one((start + rank) % count)) for rank in ranks]
            return
        yield from self._passed_over(epoch, taken, workers, ranks)

    def _passed_over(
        self, epoch: int, taken: int, workers: int, ranks: Sequence[int]
    ) -> Iterator[list[tuple[Any, Any]]]:
        first: list[Any] = []
        batches = self._drawn(epoch)
        for batch in itertools.islice(batches, taken):
            if len(first) < workers:
                first.append(batch)
        while whole := list(itertools.islice(batches, workers)):
            first += whole[: workers - len(first)]
            filled = itertools.cycle(first)
            while len(whole) < workers:
                whole.append(next(filled))
            yield [_pair(whole[rank]) for rank in ranks]

    def _drawn(self, epoch: int) -> Iterator[Any]:
        """Yield all batches; what they draw goes on from batch to batch, whatever is between."""
        state = torch.Generator().manual_seed(draw_key(self._seed, -1, epoch, 0)).get_state()
        iterator: Iterator[Any] | None = None
        while True:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                if iterator is None:
                    iterator = iter(self._batches)
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                state = torch.get_rng_state()
            yield batch


def _pair(batch: Any) -> tuple[Any, Any]:
    try:
        x, y = batch
    except (TypeError, ValueError):
        raise DataError(f"a batch must be a pair (x, y), but got {type(batch).__name__}") from None
    return x, y
