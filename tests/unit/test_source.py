"""The source: iterables in, the stream of features out, labels ahead of them in their own box."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import BatchError
from actors.pipeline.source import Source
from actors.wires.local_wire import local_wire
from actors.wires.mailbox import Inbox, Outbox
from actors.wires.messages import Kind, Message

pytestmark = pytest.mark.unit

Batch = tuple[Tensor, Tensor]


def numbered(count: int, size: int = 2, start: int = 0) -> list[Batch]:
    """Batches whose features and labels tell their number."""
    return [
        (torch.full((size, 3), float(start + n)), torch.full((size,), start + n))
        for n in range(count)
    ]


class Bench:
    """A source and the inbox that its labels lead to."""

    def __init__(self, train: Any, test: Any = None, *, capacity: int = 100, **more: Any) -> None:
        sending, receiving = local_wire()
        self.labels = Inbox("labels", receiving, capacity)
        self.source = Source(
            train,
            test,
            labels=Outbox("labels", sending, capacity),
            **{"epochs": 1, "parts": 1, **more},
        )

    def features(self) -> list[Message]:
        """Take everything up to the end."""
        found: list[Message] = []
        while not found or found[-1].kind is not Kind.FINISH:
            message = self.source.take()
            assert message is not None
            found.append(message)
        return found

    def all_labels(self) -> list[Message]:
        found = []
        while (message := self.labels.take()) is not None:
            found.append(message)
        return found


def spell(messages: Sequence[Message]) -> str:
    letters = {
        Kind.BATCH: "b",
        Kind.EVALUATE: "t",
        Kind.RECHECK: "r",
        Kind.DRAIN: "drain",
        Kind.EPOCH: "epoch",
        Kind.CHECKPOINT: "saved",
        Kind.FINISH: "end",
    }
    return " ".join(f"{letters[m.kind]}{m.index}" for m in messages)


def first(message: Message) -> float:
    tensor = message.tensors[0]
    assert tensor is not None
    return float(tensor.flatten()[0])


# ------------------------------------------------------------------ the stream


def test_one_epoch_without_a_test_set_is_batches_drain_epoch_end():
    assert spell(Bench(numbered(3)).features()) == "b0 b1 b2 drain3 epoch0 end3"


def test_batches_and_test_batches_are_numbered_over_all_epochs():
    bench = Bench(numbered(2), numbered(2), epochs=3)
    assert spell(bench.features()) == (
        "b0 b1 t0 t1 epoch0 b2 b3 t2 t3 epoch1 b4 b5 drain6 t4 t5 epoch2 end6"
    )


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (2, "b0 epoch0 b1 t0 epoch1 b2 epoch2 b3 t1 epoch3 b4 drain5 t2 epoch4 end5"),
        (3, "b0 epoch0 b1 epoch1 b2 t0 epoch2 b3 epoch3 b4 drain5 t1 epoch4 end5"),
        (9, "b0 epoch0 b1 epoch1 b2 epoch2 b3 epoch3 b4 drain5 t0 epoch4 end5"),
    ],
)
def test_the_test_set_comes_every_so_many_epochs_and_always_last(every: int, expected: str):
    bench = Bench(numbered(1), numbered(1), epochs=5, evaluate_every=every)
    assert spell(bench.features()) == expected


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (0, "drain0 end0"),
        (1, "b0 drain1 end1"),
        (2, "b0 b1 t0 epoch0 drain2 end2"),
        (3, "b0 b1 t0 epoch0 b2 drain3 end3"),
        (6, "b0 b1 t0 epoch0 b2 b3 t1 epoch1 b4 b5 drain6 t2 epoch2 end6"),
    ],
)
def test_a_source_that_is_asked_to_end_does_before_the_next_batch(batches: int, expected: str):
    """Tests that have begun come whole, and who has no batch left ends as ever."""
    asked = itertools.count()
    bench = Bench(numbered(2), numbered(1), epochs=3, ends=lambda: next(asked) >= batches)
    assert spell(bench.features()) == expected


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (1, "b0 saved1 b1 b2 epoch0 b3 b4 b5 drain6 epoch1 end6"),
        (2, "b0 b1 saved2 b2 epoch0 b3 b4 b5 drain6 epoch1 end6"),
    ],
)
def test_a_checkpoint_that_is_asked_for_comes_once_and_as_soon_as_there_can_be_one(
    window: int, expected: str
):
    saves = threading.Event()
    plan = CheckpointPlan(every_s=1e9, window=window)
    bench = Bench(numbered(3), epochs=2, saves=saves, checkpoints=plan)
    begun = bench.source.take()
    assert begun is not None
    saves.set()
    assert spell([begun, *bench.features()]) == expected
    assert not saves.is_set()


def test_features_and_labels_carry_what_the_iterables_gave():
    bench = Bench(numbered(2), numbered(1, start=7))
    features, labels = bench.features(), bench.all_labels()
    carried = [m for m in features if m.tensors]
    assert spell(carried) == spell(labels) == "b0 b1 t0"
    assert [first(m) for m in carried] == [first(m) for m in labels] == [0, 1, 7]
    assert [m.unit for m in carried] == [m.unit for m in labels]
    assert all(m.share == 1.0 for m in carried)


def test_several_features_and_labels_travel_together():
    x, y = (torch.ones(2, 3), torch.zeros(2)), [torch.ones(2), torch.arange(2)]
    bench = Bench([(x, y)])
    got = bench.source.take()
    assert got is not None
    assert [t.shape for t in got.tensors if t is not None] == [(2, 3), (2,)]
    (labels,) = bench.all_labels()
    assert [t.dtype for t in labels.tensors if t is not None] == [torch.float32, torch.int64]


class Recording:
    """Tells when it was asked for an epoch, opened and read."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def set_epoch(self, epoch: int) -> None:
        self.log.append(f"set {epoch}")

    def __iter__(self) -> Iterator[Batch]:
        self.log.append("open")
        for n, pair in enumerate(numbered(2)):
            self.log.append(f"read {n}")
            yield pair


def test_set_epoch_is_called_before_each_epoch_is_opened():
    train = Recording()
    Bench(train, epochs=2).features()
    once = ["open", "read 0", "read 1"]
    assert train.log == ["set 0", *once, "set 1", *once]


def test_a_batch_is_read_when_it_is_asked_for_and_not_before():
    train = Recording()
    bench = Bench(train)
    assert train.log == []
    bench.source.take()
    assert train.log == ["set 0", "open", "read 0"]


def test_closing_lets_go_of_the_iterable():
    left = []

    class Loader:
        def __iter__(self) -> Iterator[Batch]:
            try:
                yield from numbered(2)
            finally:
                left.append(True)

    bench = Bench(Loader())
    bench.source.take()
    assert not left
    bench.source.close()
    assert left == [True]


# ------------------------------------------------------------------ micro-batches


@pytest.mark.parametrize(
    ("size", "parts", "sizes"),
    [(6, 3, [2, 2, 2]), (7, 3, [3, 3, 1]), (2, 4, [1, 1]), (5, 4, [2, 2, 1]), (1, 2, [1])],
)
def test_a_batch_is_cut_into_micro_batches_whose_shares_sum_to_one(
    size: int, parts: int, sizes: list[int]
):
    x, y = torch.arange(size * 2.0).reshape(size, 2), torch.arange(size)
    bench = Bench([(x, y)], parts=parts)
    features = [m for m in bench.features() if m.kind is Kind.BATCH]
    labels = bench.all_labels()
    assert [m.tensors[0].shape[0] for m in features] == sizes
    assert [(m.index, m.part, m.parts) for m in features] == [
        (0, part, len(sizes)) for part in range(len(sizes))
    ]
    assert [m.share for m in features] == pytest.approx([s / size for s in sizes])
    assert sum(m.share for m in features) == pytest.approx(1.0)
    assert [m.unit for m in labels] == [m.unit for m in features]
    assert torch.equal(torch.cat([m.tensors[0] for m in features]), x)
    assert torch.equal(torch.cat([m.tensors[0] for m in labels]), y)


def test_all_tensors_of_a_batch_are_cut_alike():
    x, y = (torch.arange(5.0), torch.arange(10.0).reshape(5, 2)), torch.arange(5)
    bench = Bench([(x, y)], parts=2)
    features = [m.tensors for m in bench.features() if m.kind is Kind.BATCH]
    assert [[len(t) for t in tensors] for tensors in features] == [[3, 3], [2, 2]]
    assert torch.equal(torch.cat([tensors[1] for tensors in features]), x[1])
    assert [[len(t) for t in m.tensors] for m in bench.all_labels()] == [[3], [2]]


def test_a_ragged_last_batch_has_its_own_micro_batches():
    data = [*numbered(1, size=4), *numbered(1, size=3, start=1)]
    features = [m for m in Bench(data, parts=4).features() if m.kind is Kind.BATCH]
    assert [(m.index, m.part, m.parts) for m in features] == [
        *[(0, part, 4) for part in range(4)],
        *[(1, part, 3) for part in range(3)],
    ]


def test_test_batches_are_not_cut():
    bench = Bench(numbered(1, size=4), numbered(1, size=4), parts=2)
    tested = [m for m in bench.features() if m.kind is Kind.EVALUATE]
    assert [(m.part, m.parts, m.tensors[0].shape[0]) for m in tested] == [(0, 1, 4)]


# ------------------------------------------------------------------ labels and credits


def test_labels_are_under_way_before_their_features_are_handed_out():
    bench = Bench(numbered(2), numbered(1), parts=2)
    for _ in range(3):
        features = bench.source.take()
        labels = bench.labels.take()
        assert features is not None
        assert labels is not None
        assert (labels.kind, labels.unit) == (features.kind, features.unit)
        assert bench.labels.take() is None


def test_without_a_credit_for_labels_nothing_comes_and_nothing_is_lost():
    bench = Bench(numbered(3), numbered(1), capacity=1)
    found: list[Message] = []
    refused = 0
    while not found or found[-1].kind is not Kind.FINISH:
        message = bench.source.take()
        if message is None:
            assert bench.source.take() is None
            assert bench.labels.take() is not None
            refused += 1
        else:
            found.append(message)
    # Markers need no labels, so nothing holds them up.
    assert spell(found) == "b0 b1 b2 drain3 t0 epoch0 end3"
    assert [first(m) for m in found if m.tensors] == [0, 1, 2, 0]
    assert refused == 3
    assert bench.source.statistics.messages == 7


def test_the_wait_for_a_credit_is_that_of_the_label_box():
    asked = []

    class NoCredit(Outbox):
        def ready(self, timeout_s: float = 0.0) -> bool:
            asked.append(timeout_s)
            return False

    source = Source(
        numbered(1), None, epochs=1, parts=1, labels=NoCredit("labels", local_wire()[0], 1)
    )
    assert source.take(0.75) is None
    assert asked == [0.75]


# ------------------------------------------------------------------ labels for others, rechecks


def test_labels_of_training_batches_go_to_every_box_before_their_features_and_tests_to_one():
    bench = Bench(numbered(2), numbered(1))
    ends = [local_wire() for _ in range(2)]
    bench.source = Source(
        numbered(2),
        numbered(1),
        epochs=1,
        parts=1,
        labels=Outbox("loss", ends[1][0], 9),
        local_labels=[Outbox("own", ends[0][0], 9)],
    )
    own, loss = (Inbox("labels", end, 9) for _, end in ends)
    bench.features()
    assert spell([own.take(), own.take()]) == "b0 b1"
    assert own.take() is None
    assert spell([loss.take(), loss.take(), loss.take()]) == "b0 b1 t0"


def test_no_box_gets_labels_while_another_is_full():
    ends = [local_wire() for _ in range(2)]
    full = Outbox("own", ends[0][0], 1)
    source = Source(
        numbered(2),
        None,
        epochs=1,
        parts=1,
        labels=Outbox("loss", ends[1][0], 9),
        local_labels=[full],
    )
    loss = Inbox("labels", ends[1][1], 9)
    assert source.take() is not None
    assert source.take() is None
    assert loss.take() is not None
    assert loss.take() is None
    Inbox("own", ends[0][1], 1).take()
    assert source.take() is not None


def test_a_group_of_rechecks_comes_ahead_of_its_batch_when_all_its_batches_have_been():
    bench = Bench(numbered(4), epochs=2, recheck_every=3, recheck_ages=(0, 2))
    features = bench.features()
    assert spell(features) == ("b0 b1 b2 r3 r1 b3 epoch0 b4 b5 r6 r4 b6 b7 drain8 epoch1 end8")
    again = [m for m in features if m.kind is Kind.RECHECK]
    assert [(m.part, m.parts) for m in again] == [(0, 2), (1, 2)] * 2
    assert [first(m) for m in again] == [3, 1, 2, 0], "the second epoch's batches begin anew"
    assert [m.index for m in bench.all_labels() if m.kind is Kind.RECHECK] == [3, 1, 6, 4]


# ------------------------------------------------------------------ what is no batch

X, Y = torch.ones(2, 3), torch.ones(2)
NO_PAIR = "must be a pair"
NO_TENSOR = "must be tensors"
NO_SIZE = "must have the same number of samples, at least one"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, f"{NO_PAIR}.* is a Tensor"),
        ((X, Y, Y), f"{NO_PAIR}.* is a tuple of 3: .*Tensor"),
        ((X,), f"{NO_PAIR}.* is a tuple of 1"),
        ({"x": X, "y": Y}, f"{NO_PAIR}.* is a dict"),
        ("xy", f"{NO_PAIR}.* is a str"),
        (None, f"{NO_PAIR}.* is a NoneType"),
        ((X, [0, 1]), rf"{NO_TENSOR}, but y of .* is a list of 2: \['int', 'int'\]"),
        ((X.numpy(), Y), f"{NO_TENSOR}, but x of .* is a ndarray"),
        ((X, None), f"{NO_TENSOR}, but y of .* is a NoneType"),
        ((X, ()), f"{NO_TENSOR}, but y of .* is a tuple of 0"),
        (((X, None), Y), f"{NO_TENSOR}, but x of .* is a tuple of 2"),
        ((X, torch.ones(3)), rf"{NO_SIZE}, but .* shapes \[\(2, 3\), \(3,\)\]"),
        (((X, torch.ones(3)), Y), NO_SIZE),
        ((torch.ones(0, 3), torch.ones(0)), NO_SIZE),
        ((X, torch.tensor(1.0)), rf"{NO_SIZE}, but .* shapes \[\(2, 3\), \(\)\]"),
        ((torch.tensor(1.0), torch.tensor(1.0)), NO_SIZE),
    ],
    ids=lambda value: None if isinstance(value, str) and len(value) > 2 else type(value).__name__,
)
def test_what_is_not_a_pair_of_tensors_of_one_size_is_refused(batch: Any, message: str):
    bench = Bench([(X, Y), batch])
    bench.source.take()
    with pytest.raises(BatchError, match=message):
        bench.source.take()


def test_the_refusal_tells_the_batch_and_the_epoch():
    class Loader:
        def __init__(self) -> None:
            self.epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[Any]:
            yield (X, Y)
            yield (X, Y) if self.epoch == 0 else X

    with pytest.raises(BatchError, match="but batch 1 of epoch 1 is a Tensor"):
        Bench(Loader(), epochs=2).features()


def test_a_bad_test_batch_is_refused_as_such():
    with pytest.raises(BatchError, match="but test batch 1 of epoch 0 is a Tensor"):
        Bench([(X, Y)], [(X, Y), X]).features()


def test_an_empty_iterable_is_refused():
    with pytest.raises(BatchError, match="epoch 0 has no batches: give something that can be"):
        Bench([]).source.take()


def test_a_generator_that_is_spent_is_refused_in_the_second_epoch():
    bench = Bench((pair for pair in numbered(2)), epochs=2)
    assert spell([bench.source.take() for _ in range(3)]) == "b0 b1 epoch0"
    with pytest.raises(BatchError, match="epoch 1 has no batches"):
        bench.source.take()
