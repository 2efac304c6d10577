"""The features box of stage 0: it turns the user's iterables into the stream of messages.

    epoch 0    batches …  test batches …  EPOCH 0
    …          batches …  CHECKPOINT  batches …
    last       batches …  DRAIN  test batches …  EPOCH  FINISH

Between two epochs the pipeline does not empty: every stage tests with its weights at the same
index n. The last test comes after the drain, with the weights that the run returns. Labels go
straight to the stage that has the loss, ahead of the features that they belong to; those of
training batches also to every stage that has a loss of its own. A run that is asked to end goes to
its DRAIN and FINISH before the next batch, without a test. A checkpoint stands between two
batches; the source's part of it is where it is and what its draws, and the iterables' own state,
were at the start of the epoch, from which the same batches come again.

With `recheck_ages`, every `recheck_every` batches a group of the batches of so many indices before
comes once more, as RECHECK ahead of the next batch; the source keeps no more than it needs for it.
After a checkpoint the groups begin when there are such batches again.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import BatchError, MechanismError
from actors.own_state import OwnState
from actors.pipeline.batch import as_tensors
from actors.pipeline.draws import Draws
from actors.units import Unit
from actors.user_errors import describe_error, with_traceback
from actors.wires.mailbox import BoxStatistics, Outbox
from actors.wires.messages import Kind, Message

__all__ = ["LossShares", "Source"]

LossShares = Callable[[Sequence[Sequence[Tensor]]], Sequence[float]]


@dataclass(slots=True)
class _Place:
    """Where the source is: what comes next is batch `index` of `epoch`."""

    epoch: int = 0
    index: int = 0
    batch: int = 0
    tested: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    features: Message
    labels: Message | None


_Pair = tuple[int, tuple[Tensor, ...], tuple[Tensor, ...]]


class Source:
    """Read batches, cut them into micro-batches, number them.

    Args:
        train: re-iterable of (x, y); `set_epoch(epoch)` is called before each epoch if it is there.
        test: re-iterable of (x, y), or None.
        epochs: how often to go through `train`.
        parts: micro-batches per batch; a batch of fewer samples gives fewer.
        loss_shares: from the labels of a batch's micro-batches to the weights of their losses in
            the batch's; default: those of their samples.
        labels: the box that leads to the loss.
        local_labels: the boxes that lead to other stages that need the labels of training batches.
        evaluate_every: epochs between two tests; the last epoch is always tested.
        recheck_every: batches between two groups of rechecks; 0: none.
        recheck_ages: how many indices before the next batch's the batches of a group are, each
            age once; a group comes when there are such batches.
        seed: of the draws that the iterables make from the global generators.
        checkpoints: when to put markers between the batches; default: never.
        start: from `state`, where to go on; default: the beginning.
        saves: set to ask for a checkpoint as soon as there can be one; cleared when it is made.
        ends: asked before every training batch whether the run is to end there; default: never.
        clock: for tests.
    """

    name = "batches"

    def __init__(
        self,
        train: Iterable[Any],
        test: Iterable[Any] | None,
        *,
        epochs: int,
        parts: int,
        loss_shares: LossShares | None = None,
        labels: Outbox,
        local_labels: Sequence[Outbox] = (),
        evaluate_every: int = 1,
        recheck_every: int = 0,
        recheck_ages: Sequence[int] = (),
        seed: int = 0,
        checkpoints: CheckpointPlan | None = None,
        start: Mapping[str, Any] | None = None,
        saves: threading.Event | None = None,
        ends: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.statistics = BoxStatistics()
        self._labels = labels
        self._local_labels = local_labels
        self._epochs = epochs
        self._parts = parts
        self._loss_shares = loss_shares
        self._evaluate_every = evaluate_every
        self._recheck_every = recheck_every
        self._ages = recheck_ages
        self._seen: deque[_Pair] = deque(maxlen=max(recheck_ages, default=0) + 1)
        self._checkpoints = checkpoints or CheckpointPlan()
        self._saves = saves or threading.Event()
        self._ends = ends
        self._ended = False
        self._clock = clock
        self._draws = Draws(seed)
        self._own = OwnState(train=train, test=test)
        self._place = _Place()
        self._at_epoch = self._state_now() if start is None else self._resumed(train, start)
        self._saved, self._saved_s = self._place.batch, clock()
        self._items = self._stream(train, test)
        self._held: _Item | None = None

    def take(self, timeout_s: float = 0.0) -> Message | None:
        """Return the next message; None if the labels could not be sent within `timeout_s`.

        Raises:
            BatchError: the iterable failed, or gave something that is not a batch, or nothing;
                the message says at which batch.
        """
        if self._held is None:
            self._held = next(self._items)
        labels = self._held.labels
        if labels is not None:
            training = labels.kind is Kind.BATCH
            boxes = [*self._local_labels, self._labels] if training else [self._labels]
            if not all(box.ready(timeout_s) for box in boxes):
                return None
            for box in boxes:
                box.put(labels)
        message, self._held = self._held.features, None
        self.statistics.messages += 1
        return message

    def close(self) -> None:
        """Let go of the iterables."""
        self._items.close()

    def state(self) -> dict[str, Any]:
        """Return where the source is between two batches, to `start` another one from."""
        return {"place": asdict(self._place), **self._at_epoch}

    def _state_now(self) -> dict[str, Any]:
        """Return the draws and the iterables' own state, the latter for checkpoints only."""
        # The draws first: it may draw to tell its state.
        draws = self._draws.state()
        if not self._checkpoints.on:
            return {"draws": draws}
        with self._draws.drawn():
            return {"draws": draws, "own": self._own.state()}

    def _resumed(self, train: Iterable[Any], start: Mapping[str, Any]) -> dict[str, Any]:
        """Go to where `start` says; return the state at the epoch's start."""
        self._place = _Place(**start["place"])
        if self._place.epoch and getattr(train, "persistent_workers", False):
            # From its second epoch on such a loader draws no new seed for its workers.
            with self._draws.drawn():
                iter(train)
        # What the last version wrote has no states of the iterables' own.
        self._own.restore(start.get("own", {}))
        self._draws.restore(start["draws"])
        return self._state_now()

    def _stream(self, train: Iterable[Any], test: Iterable[Any] | None) -> Any:
        for epoch in range(self._place.epoch, self._epochs):
            last = epoch == self._epochs - 1
            yield from self._batches(train, epoch)
            if last or self._ended:
                yield _Item(features=Message(Kind.DRAIN, self._place.batch), labels=None)
            if self._ended:
                break
            if test is not None and (last or (epoch + 1) % self._evaluate_every == 0):
                yield from self._tests(test, epoch)
            yield _Item(features=Message(Kind.EPOCH, epoch), labels=None)
        yield _Item(features=Message(Kind.FINISH, self._place.batch), labels=None)

    def _batches(self, train: Iterable[Any], epoch: int) -> Iterator[_Item]:
        place = self._place
        if epoch != place.epoch:
            place.epoch, place.index = epoch, 0
            self._at_epoch = self._state_now()
        if hasattr(train, "set_epoch"):
            with _telling(lambda: f"set_epoch({epoch})"):
                train.set_epoch(epoch)
        for pair in self._drawing(
            lambda: _from_batch(train, place.index),
            lambda: f"batch {place.index} of epoch {epoch}",
        ):
            if self._ends():
                self._ended = True
                return
            # Before the batch, so that a marker never follows the last one of a run.
            if self._due():
                yield _Item(features=Message(Kind.CHECKPOINT, place.batch), labels=None)
            x, y = as_tensors(pair, f"batch {place.index} of epoch {epoch}")
            batch = place.batch
            place.index += 1
            place.batch += 1
            yield from self._recheck(batch, x, y)
            yield from self._cut(batch, x, y)
        if not place.index:
            raise BatchError(
                f"epoch {epoch} has no batches: give something that can be iterated over "
                "again, such as a list or a DataLoader, and is not empty"
            )

    def _due(self) -> bool:
        batch, now_s = self._place.batch, self._clock()
        asked = self._saves.is_set()
        due = self._checkpoints.due(batch, batch - self._saved, now_s - self._saved_s, asked=asked)
        if due:
            self._saved, self._saved_s = batch, now_s
            self._saves.clear()
        return due

    def _tests(self, test: Iterable[Any], epoch: int) -> Iterator[_Item]:
        place = self._place
        for pair in self._drawing(
            lambda: iter(test), lambda: f"test batch {place.tested} of epoch {epoch}"
        ):
            x, y = as_tensors(pair, f"test batch {place.tested} of epoch {epoch}")
            yield _Item(
                features=Message(Kind.EVALUATE, place.tested, x),
                labels=Message(Kind.EVALUATE, place.tested, y),
            )
            place.tested += 1

    def _drawing(
        self, begin: Callable[[], Iterator[Any]], what: Callable[[], str]
    ) -> Iterator[Any]:
        """Iterate with the iterable's own draws in the generators, and only while it runs.

        Args:
            begin: makes the iterator.
            what: names what comes next, for errors.
        """
        end = object()
        with self._draws.drawn(), _telling(what):
            iterator = begin()
        while True:
            with self._draws.drawn(), _telling(what):
                pair = next(iterator, end)
            if pair is end:
                return
            yield pair

    def _recheck(self, batch: int, x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> Iterator[_Item]:
        if not self._recheck_every:
            return
        self._seen.append((batch, x, y))
        ages = self._ages
        if batch % self._recheck_every or max(ages) >= len(self._seen):
            return
        for part, age in enumerate(ages):
            index, features, labels = self._seen[-1 - age]
            about = (part, len(ages))
            yield _Item(
                features=Message(Kind.RECHECK, index, features, *about),
                labels=Message(Kind.RECHECK, index, labels, *about),
            )

    def _cut(self, batch: int, x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> Iterator[_Item]:
        if self._parts == 1:
            yield _Item(
                features=Message(Kind.BATCH, batch, x), labels=Message(Kind.BATCH, batch, y)
            )
            return
        size = x[0].shape[0]
        pieces = [t.chunk(self._parts) for t in (*x, *y)]
        parts = len(pieces[0])
        shares: Sequence[float] = [piece.shape[0] / size for piece in pieces[0]]
        of_losses = shares
        if self._loss_shares is not None:
            of_losses = self._loss_shares(list(zip(*pieces[len(x) :], strict=True)))
        for part, (share, of_loss) in enumerate(zip(shares, of_losses, strict=True)):
            cut = [piece[part] for piece in pieces]
            unit = Unit(batch, part, parts, share, of_loss)
            yield _Item(
                features=Message.of(unit, tuple(cut[: len(x)])),
                labels=Message.of(unit, tuple(cut[len(x) :])),
            )


def _from_batch(train: Iterable[Any], index: int) -> Iterator[Any]:
    """Iterate from batch `index` on: at once where `train` can, else by making those before it."""
    if index and hasattr(train, "from_batch"):
        return iter(train.from_batch(index))
    return itertools.islice(iter(train), index, None)


@contextlib.contextmanager
def _telling(what: Callable[[], str]) -> Iterator[None]:
    """Raise what the user's iterable raises as an error that travels and tells where it was."""
    try:
        yield
    except MechanismError:
        raise
    except Exception as error:
        told = BatchError(
            f"{what()} must be made by the batches, but they raise {describe_error(error)}"
        )
        raise with_traceback(told, error) from error
