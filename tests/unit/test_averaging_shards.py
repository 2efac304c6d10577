"""Workers of averaging methods read the samples of their own batches, in one order."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from actors.checkpoint_plan import CheckpointPlan
from raylab.drivers.averaging.course import Course
from raylab.drivers.averaging.reading import reads_own
from raylab.drivers.averaging.settings import AveragingSettings
from raylab.drivers.averaging.shards import Shards
from raylab.drivers.averaging.simulated import Replicas
from raylab.errors import DataError
from tests.unit.test_averaging_loop import run

pytestmark = pytest.mark.unit

SAMPLES = 26


class Counted(Dataset[tuple[Tensor, Tensor]]):
    """Notes what is read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read.append(index)
        return torch.tensor([float(index)]), torch.tensor(index)


class Noisy(Counted):
    """Draws for each sample."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([index + float(self.draw())]), torch.tensor(index)


class Streamed(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        return iter([(torch.tensor([float(i)]), torch.tensor(i)) for i in range(SAMPLES)])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


LOADERS = {
    "shuffled": functools.partial(DataLoader, batch_size=3, shuffle=True),
    "with a generator": lambda data: DataLoader(data, 3, shuffle=True, generator=generator()),
    "in order, the last left out": functools.partial(DataLoader, batch_size=4, drop_last=True),
    "one by one": functools.partial(DataLoader, batch_size=None, shuffle=True),
    "by workers": functools.partial(DataLoader, batch_size=3, shuffle=True, num_workers=1),
}


def batches_of(loader: Any, workers: int, rank: int, *, own: bool, taken: int = 0) -> list[Any]:
    shards = Shards(loader, seed=3, own=own)
    found = []
    for epoch in (0, 1):
        for ((x, _),) in shards.rounds(
            epoch=epoch, taken=0 if epoch else taken, workers=workers, ranks=[rank]
        ):
            found.append(x.flatten().tolist())
            torch.rand(3)  # what the network draws in between
    return found


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("workers", [1, 4])
def test_what_a_worker_reads_itself_is_what_it_gets_of_the_whole(kind, workers):
    data = Counted()
    assert reads_own(LOADERS[kind](data))
    assert data.read == []
    for rank in {0, workers - 1}:
        for taken in (0, workers):
            whole = batches_of(LOADERS[kind](Counted()), workers, rank, own=False, taken=taken)
            assert batches_of(LOADERS[kind](data), workers, rank, own=True, taken=taken) == whole


@pytest.mark.parametrize("workers", [2, 8])
def test_all_workers_together_read_each_sample_once(workers):
    read: list[int] = []
    for rank in range(workers):
        data = Counted()
        loader = DataLoader(data, batch_size=1, shuffle=True)
        list(Shards(loader, seed=3, own=True).rounds(0, 0, workers, [rank]))
        assert len(data.read) == -(-SAMPLES // workers)
        read += data.read
    assert set(read) == set(range(SAMPLES))
    tested: list[int] = []
    for rank in range(workers):
        data = Counted()
        list(Shards(DataLoader(data, 2, shuffle=True), seed=3, own=True).share(rank, workers))
        tested += data.read
    assert sorted(tested) == list(range(SAMPLES))


def test_workers_that_have_drawn_otherwise_share_a_shuffled_test():
    found = []
    for rank in range(2):
        torch.manual_seed(rank)
        loader = DataLoader(Counted(), 2, shuffle=True)
        found += [i for _, y in Shards(loader, seed=3).share(rank, 2) for i in y.tolist()]
    assert sorted(found) == list(range(SAMPLES))


@pytest.mark.parametrize(
    "data",
    [
        Noisy(lambda: torch.rand(())),
        Noisy(random.random),
        Noisy(random.Random(3).random),
        Streamed(),
    ],
)
def test_a_data_set_that_draws_or_streams_is_read_as_a_whole_by_every_worker(data):
    assert not reads_own(DataLoader(data, 3))
    assert not any(reads_own(each) for each in (None, [], iter([]), object()))


def test_a_run_goes_on_with_the_order_of_a_loaders_own_generator():
    def plan() -> Course:
        x = torch.randn(40, 4, generator=generator())
        data = TensorDataset(x, (x.sum(1) > 0).long())
        torch.manual_seed(0)
        return Course(
            settings=AveragingSettings(method="local_sgd", least=2, most=2, tau=2),
            model=nn.Linear(4, 2),
            loss_fn=F.cross_entropy,
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
            schedule=None,
            batches=DataLoader(data, 4, shuffle=True, generator=generator()),
            test=DataLoader(data, 4, shuffle=True, generator=generator()),
            epochs=3,
            checkpoints=CheckpointPlan(every_batches=3),
            reads_own=True,
        )

    whole, kept = run(plan(), 2)
    assert len(kept.parts) >= 3
    for parts in kept.parts.values():
        again, _ = run(plan(), 2, parts)
        assert torch.equal(again.workers[1].weights.read(), whole.workers[1].weights.read())
        assert again.loop.rows[-1]["test_loss"] == whole.loop.rows[-1]["test_loss"]


def test_what_batches_raise_is_told_with_its_place():
    class Broken(Counted):
        def __getitem__(self, index: int) -> Any:
            if index == 8:
                raise KeyError("x")
            return super().__getitem__(index)

    for own in (False, True):
        shards = Shards(DataLoader(Broken(), 2), seed=0, own=own)
        with pytest.raises(DataError, match=r"batch 4 must be made.*KeyError: 'x'"):
            list(shards.rounds(epoch=0, taken=0, workers=1, ranks=[0]))


def test_an_epoch_without_batches_and_a_batch_without_samples_are_told():
    class Once:
        """Gives its batches in the first epoch only."""

        def __init__(self) -> None:
            self.pairs = [(torch.ones(2, 1), torch.ones(2))]

        def __iter__(self) -> Any:
            pairs, self.pairs = self.pairs, []
            return iter(pairs)

    shards = Shards(Once(), seed=0)
    rounds = functools.partial(shards.rounds, taken=0, workers=2, ranks=[0])
    assert len(list(rounds(epoch=0))) == 1
    with pytest.raises(DataError, match="epoch 1 has no batches"):
        list(rounds(epoch=1))
    for pairs in ([(torch.ones(0, 1), torch.ones(0))], [(torch.ones(2, 1), torch.ones(0))]):
        with pytest.raises(DataError, match=r"at least one sample, but . of one has the shape \(0"):
            list(Shards(pairs, seed=0).rounds(epoch=0, taken=0, workers=1, ranks=[0]))


def test_the_loop_of_all_replicas_is_the_same_with_either_way_of_reading():
    def trained(*, own: bool) -> Tensor:
        torch.manual_seed(0)
        plan = Course(
            settings=AveragingSettings(method="dasgd", least=3, most=3),
            model=nn.Linear(1, SAMPLES),
            loss_fn=F.cross_entropy,
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
            schedule=None,
            batches=DataLoader(Counted(), 3, shuffle=True),
            test=DataLoader(Counted(), 3),
            epochs=2,
            reads_own=own,
            reads_own_test=own,
        )
        replicas = Replicas(plan, 3)
        replicas.loop.run()
        return replicas.workers[2].weights.read()

    assert torch.equal(trained(own=True), trained(own=False))
