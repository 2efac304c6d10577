"""An epoch's batches, dealt out to the workers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from actors.own_state import OwnState
from actors.user_errors import describe_error, with_traceback
from raylab.algorithms.stage.settings import draw_key
from raylab.drivers.averaging.reading import KeyedDraws, Route, index_order, reader_of
from raylab.drivers.batches import batches_of, first_of, same_draws
from raylab.errors import DataError, RaylabError

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
    sequence) a worker makes its own only; so it does with `own`, by the order that the loader's
    sampler draws at all workers alike. Anything else, an iterable data set for one, is iterated
    over by every worker, which passes over the others' batches; what that draws from the process's
    generators is keyed by seed and epoch, the same for all workers.

    >>> shards = Shards(["abcde"[i] * 2 for i in range(5)], seed=0)
    >>> [batch for (batch,) in shards.rounds(epoch=0, taken=0, workers=3, ranks=[1])]
    [('b', 'b'), ('e', 'e')]

    Args:
        batches: re-iterable of (x, y); its `set_epoch(epoch)` is called if there is one.
        seed: of the run.
        own: from `reads_own`.
    """

    def __init__(self, batches: Iterable[Any], seed: int, *, own: bool = False) -> None:
        self._batches = batches
        self._seed = seed
        self._own = own
        self._state = OwnState(batches=batches)
        self._resumed: Mapping[str, Any] | None = None
        self._at_epoch: dict[str, Any] = {}
        self._begun = False
        self._route = Route()
        self._reader: DataLoader[Any] | None = None

    def state(self) -> dict[str, Any]:
        """Return the batches' own state at the start of the epoch."""
        return self._at_epoch

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let the next epoch begin from what `state` has returned in it."""
        self._resumed = state

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
        if self._resumed is not None:
            self._state.restore(self._resumed)
            self._resumed = None
        self._at_epoch = self._state.state()
        if hasattr(self._batches, "set_epoch"):
            self._batches.set_epoch(epoch)
        count = batches_of(self._batches)
        one = getattr(self._batches, "batch", None)
        if one is None and isinstance(self._batches, Sequence):
            one = self._batches.__getitem__
        if count is not None and one is not None:
            for start in range(taken, count, workers):
                places = [(start + rank) % count for rank in ranks]
                yield [_pair(_made(functools.partial(one, place), place)) for place in places]
            return
        if self._own:
            yield from self._read(epoch, taken, workers, ranks)
            return
        stream = self._drawn(epoch, self._begin)
        yield from self._paired(_dealt(stream, taken, workers, ranks), epoch, taken)

    def state_now(self) -> dict[str, Any]:
        """Return the batches' own state between two passes of a test."""
        return self._state.state()

    def share(self, rank: int, workers: int) -> Iterator[Any]:
        """Yield a worker's batches of one pass for a test, in which each batch is one worker's."""
        one = self._batches.__getitem__ if isinstance(self._batches, Sequence) else None
        count = batches_of(self._batches)
        if count is not None and one is not None:
            for place in range(rank, count, workers):
                yield _made(functools.partial(one, place), place)
            return
        if self._resumed is not None:
            self._state.restore(self._resumed)
            self._resumed = None
        # All workers draw one order, whatever else they have drawn.
        if not self._own:
            yield from itertools.islice(self._drawn(0, self._begin, key=-1), rank, None, workers)
            return
        order = self._drawn(0, functools.partial(index_order, self._batches))
        yield from self._read_along(itertools.islice(order, rank, None, workers), 0, -2 - rank)

    def _read(
        self, epoch: int, taken: int, workers: int, ranks: Sequence[int]
    ) -> Iterator[list[tuple[Any, Any]]]:
        """Read the samples of the wanted batches, in the loader's own way."""
        order = self._drawn(epoch, functools.partial(index_order, self._batches))
        wanted = itertools.chain.from_iterable(_dealt(order, taken, workers, ranks))
        batches = self._read_along(wanted, epoch, -2 - ranks[0])
        rounds = iter(lambda: list(itertools.islice(batches, len(ranks))), [])
        yield from self._paired(rounds, epoch, taken)

    def _paired(
        self, rounds: Iterator[list[Any]], epoch: int, taken: int
    ) -> Iterator[list[tuple[Any, Any]]]:
        given = taken
        for round_ in rounds:
            yield [_pair(batch) for batch in round_]
            given += 1
        if not given:
            raise DataError(
                f"epoch {epoch} has no batches: give something that can be iterated over again, "
                "such as a list or a DataLoader, and is not empty"
            )

    def _read_along(self, indices: Iterator[Any], epoch: int, key: int) -> Iterator[Any]:
        if self._reader is None:
            self._reader = reader_of(self._batches, self._route)
        self._route.ahead = indices
        reader = self._reader
        return self._drawn(epoch, lambda _: iter(reader), key=key)

    def _begin(self, epoch: int) -> Iterator[Any]:
        if epoch and not self._begun and getattr(self._batches, "persistent_workers", False):
            # From its second epoch on such a loader draws no new seed for its workers.
            before = self._state.state()
            with same_draws():
                iter(self._batches)
            self._state.restore(before)
        self._begun = True
        return iter(self._batches)

    def _drawn(
        self, epoch: int, begin: Callable[[int], Iterator[Any]], key: int = -1
    ) -> Iterator[Any]:
        """Yield all there is; what it draws goes on from one to the next, whatever is between."""
        draws = KeyedDraws(draw_key(self._seed, key, epoch, 0))
        with draws.drawn():
            iterator = _made(functools.partial(begin, epoch), 0)
        for place in itertools.count():
            with draws.drawn():
                found = _made(functools.partial(next, iterator, _END), place)
            if found is _END:
                return
            yield found


_END = object()


def _dealt(
    batches: Iterator[Any], taken: int, workers: int, ranks: Sequence[int]
) -> Iterator[list[Any]]:
    """Yield, round after round, what some workers get of a stream."""
    first: list[Any] = []
    for batch in itertools.islice(batches, taken):
        if len(first) < workers:
            first.append(batch)
    while whole := list(itertools.islice(batches, workers)):
        first += whole[: workers - len(first)]
        filled = itertools.cycle(first)
        while len(whole) < workers:
            whole.append(next(filled))
        yield [whole[rank] for rank in ranks]


def _made(make: Callable[[], Any], place: int) -> Any:
    """Return what the user's batches make; what they raise is told with its place in the epoch."""
    try:
        return make()
    except RaylabError:
        raise
    except Exception as error:
        told = DataError(
            f"batch {place} must be made by the batches, but they raise {describe_error(error)}"
        )
        raise with_traceback(told, error) from error


def _pair(batch: Any) -> tuple[Any, Any]:
    try:
        x, y = batch
    except (TypeError, ValueError):
        raise DataError(f"a batch must be a pair (x, y), but got {type(batch).__name__}") from None
    for name, side in (("x", x), ("y", y)):
        if isinstance(side, Tensor) and side.ndim and not side.shape[0]:
            raise DataError(
                f"a batch must have at least one sample, but {name} of one has the shape "
                f"{tuple(side.shape)}: leave such batches out"
            )
    return x, y
