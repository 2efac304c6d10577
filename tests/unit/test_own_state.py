"""Iterables that keep a state of their own: a run that goes on makes the same batches."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, TensorDataset

from actors.checkpoint_plan import CheckpointPlan
from actors.own_state import OwnState
from actors.wires.messages import Kind
from raylab.drivers.batches import check_states
from raylab.errors import DataError
from raylab.records.states import loadable
from tests.unit.test_source import Bench

pytestmark = pytest.mark.unit

EVERY = CheckpointPlan(every_batches=1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples with draws from generators of its own and of the process."""

    def __init__(self) -> None:
        self.numpy, self.python = np.random.default_rng(3), random.Random(4)
        self.old = np.random.RandomState(6)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = self.numpy.random() + self.python.random() + self.old.rand() + random.random()
        return torch.tensor([index + noise + torch.rand(()).item()]), torch.tensor(index)


class Shuffled(Sampler[list[int]]):
    """A batch sampler with a generator."""

    def __init__(self) -> None:
        self.order = generator()

    def __iter__(self) -> Iterator[list[int]]:
        yield from torch.randperm(12, generator=self.order).view(4, 3).tolist()


class Counting:
    """Batches that follow from a count, which `state_dict` tells."""

    def __init__(self) -> None:
        self.count = np.zeros(1, dtype=np.uint32)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(4):
            self.count += 1
            yield torch.full((2, 1), float(self.count[0])), torch.zeros(2)


LOADERS: dict[str, Callable[[], Any]] = {
    "a loader's generator": lambda: DataLoader(Noisy(), 3, shuffle=True, generator=generator()),
    "a sampler's generator": lambda: DataLoader(
        Noisy(), 3, sampler=RandomSampler(range(12), generator=generator())
    ),
    "a batch sampler's generator": lambda: DataLoader(Noisy(), batch_sampler=Shuffled()),
    "the global generators": lambda: DataLoader(Noisy(), 3, shuffle=True),
    "a state_dict": Counting,
    "persistent workers": lambda: DataLoader(
        TensorDataset(torch.arange(12.0), torch.arange(12)),
        3,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
    ),
}


def saved(state: dict[str, Any]) -> Any:
    """Return a state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(loadable(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def batch_of(tensors: Any) -> list[float]:
    found: list[float] = tensors[0].flatten().tolist()
    return found


def whole_run(loader: Any) -> tuple[list[list[float]], dict[int, Any]]:
    """Return the batches of three epochs, and what was saved before some of them."""
    source = Bench(loader, epochs=3, checkpoints=EVERY).source
    batches, states = [], {}
    while (message := source.take()) is not None and message.kind is not Kind.FINISH:
        if message.kind is Kind.CHECKPOINT and message.index in (2, 5, 10):
            states[len(batches)] = saved(source.state())
        if message.kind is Kind.BATCH:
            batches.append(batch_of(message.tensors))
    return batches, states


def rest_of(loader: Any, state: Any) -> list[list[float]]:
    bench = Bench(loader, epochs=3, checkpoints=EVERY, start=state)
    return [batch_of(m.tensors) for m in bench.features() if m.kind is Kind.BATCH]


@pytest.mark.parametrize("name", LOADERS)
def test_a_source_that_goes_on_gives_the_batches_of_one_that_was_not_interrupted(name):
    batches, states = whole_run(LOADERS[name]())
    assert len(batches) == 12
    assert len(states) == 3
    for done, state in states.items():
        assert rest_of(LOADERS[name](), state) == batches[done:]


def test_a_source_goes_on_from_a_state_that_knows_nothing_of_the_iterables_own():
    source = Bench(LOADERS["the global generators"](), checkpoints=EVERY).source
    state = source.state()
    del state["own"]
    start = saved(state)
    again = Bench(LOADERS["the global generators"](), checkpoints=EVERY, start=start)
    assert spelled(again) == spelled(Bench(LOADERS["the global generators"](), checkpoints=EVERY))


def spelled(bench: Bench) -> list[list[int]]:
    bench.features()
    labels = [m.tensors[0] for m in bench.all_labels()]
    return [t.tolist() for t in labels if t is not None]


def test_generators_are_found_once_through_closures_partials_and_slots():
    class Slotted:
        __slots__ = ("draws",)

        def __init__(self, draws: random.Random) -> None:
            self.draws = draws

    draws = random.Random(1)
    own = OwnState(a=lambda: draws.random(), b=Slotted(draws))
    state = own.state()
    assert len(state) == 1
    first = draws.random()
    own.restore(state)
    assert draws.random() == first


def test_a_state_that_no_checkpoint_can_hold_is_told_before_training():
    class Odd(Counting):
        def state_dict(self) -> dict[str, Any]:
            return {"file": object()}

    with pytest.raises(DataError, match=r"generators, state_dict.*'file'.*checkpoint_every=0"):
        check_states(batches=Odd())
