"""The look at a user's batches before a run leaves them as they are, ready to travel."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from raylab import PipelineTrainer
from raylab.drivers.batches import first_of, fresh
from raylab.drivers.pipeline.user_batches import first_batch
from raylab.errors import ConfigError, DataError

pytestmark = pytest.mark.unit


class OpenedLazily(Dataset[tuple[Tensor, Tensor]]):
    """Samples behind something that cannot be sent, opened once a process."""

    def __init__(self) -> None:
        self.opened: Any = None
        self.large = torch.zeros(1000, 10)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.opened = self.opened or threading.Lock()
        return self.large[index], torch.tensor(index)


def test_a_data_set_that_opens_its_file_at_the_first_sample_can_travel_after_the_look():
    loader = DataLoader(OpenedLazily(), 4)
    x, _ = first_batch(loader)
    assert x[0].shape == (4, 10)
    cloudpickle.dumps(loader)
    assert loader.dataset.opened is None


def test_a_loader_with_persistent_workers_can_travel_after_the_look():
    data = TensorDataset(torch.zeros(8, 2), torch.zeros(8))
    loader = DataLoader(data, 4, num_workers=1, persistent_workers=True)
    first_batch(loader)
    cloudpickle.dumps(loader)


def test_a_loader_that_the_user_has_looked_at_travels_without_its_iterator():
    data = TensorDataset(torch.zeros(8, 2), torch.zeros(8))
    loader = DataLoader(data, 4, num_workers=1, persistent_workers=True)
    next(iter(loader))
    first_batch(loader)
    cloudpickle.dumps(fresh(loader))
    assert loader._iterator is not None


def test_the_look_moves_no_generator():
    own = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.zeros(8, 2), torch.zeros(8))
    before = [torch.get_rng_state(), own.get_state()]
    others = random.getstate(), np.random.get_state()[1].tolist()
    first_of(DataLoader(data, 4, shuffle=True, generator=own))
    first_of(DataLoader(data, 4, shuffle=True))
    after = [torch.get_rng_state(), own.get_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert others == (random.getstate(), np.random.get_state()[1].tolist())


def test_the_look_moves_no_generator_that_a_transform_holds():
    for draw in (random.Random(1).random, np.random.default_rng(1).random):

        def noisy(index: int, draw: Any = draw) -> Tensor:
            return torch.tensor(index + draw())

        class Through:
            """Batches through a closure."""

            def __init__(self, through: Any) -> None:
                self.through = through

            def __iter__(self) -> Any:
                yield self.through(0), torch.zeros(1)

        held = Through(lambda index, noisy=noisy, draw=draw: noisy(index, draw))
        first = [float(first_of(held)[0]) for _ in range(2)]
        assert first[0] == first[1]


def test_batches_that_cannot_be_sent_are_refused_with_the_way_out():
    data = OpenedLazily()
    data[0]
    with pytest.raises(DataError, match=r"batches must be.*sent.*lock.*open files.*__getitem__"):
        first_batch(DataLoader(data, 4))


def test_a_plan_that_counts_only_refuses_what_a_run_refuses():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    good = [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))]

    class Unsized:
        def __iter__(self) -> Any:
            return iter(good)

    locked = OpenedLazily()
    locked[0]
    lock = threading.Lock()

    def held(out: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out, y) if lock else out.sum()

    trainer = PipelineTrainer(model, nn.CrossEntropyLoss(), method="bp")
    cases: list[tuple[PipelineTrainer, Any, type[Exception], str]] = [
        (trainer, [], DataError, "must not be empty"),
        (trainer, [(torch.zeros(0, 2), torch.zeros(0))], DataError, "at least one"),
        (trainer, DataLoader(locked, 4), DataError, "sent to another process"),
        (
            PipelineTrainer(model, held, method="bp"),
            good,
            ConfigError,
            "loss_fn must be something that can be sent",
        ),
        (
            PipelineTrainer(model, nn.CrossEntropyLoss(), method="bp", schedule="cosine"),
            Unsized(),
            ConfigError,
            "batches of an epoch",
        ),
    ]
    for each, batches, kind, message in cases:
        with pytest.raises(kind, match=message):
            each.plan(batches, measure=False)
        with pytest.raises(kind, match=message):
            each.fit(batches, progress=False)
