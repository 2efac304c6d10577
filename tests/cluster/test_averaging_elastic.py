"""A run that grows when a node comes and shrinks when it is lost."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ray.cluster_utils import Cluster
from ray.train import FailureConfig, RunConfig
from torch.nn import functional as F
from torch.optim import SGD

from raylab import AveragingTrainer
from tests.reference.networks import batches, mlp64

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture
def one_node(nodes) -> Iterator[Cluster]:
    with nodes(0, 1) as cluster:
        yield cluster


class Waiting:
    """Batches whose last one does not come before the test has seen enough."""

    def __init__(self, pairs: list[Any], folder: Path) -> None:
        self._pairs, self._folder = pairs, folder

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pairs)

    def batch(self, index: int) -> Any:
        """Tell with how many workers the epoch's end was come to, and wait there."""
        if index >= len(self._pairs) - 2 and dist.is_initialized():
            (self._folder / f"workers-{dist.get_world_size()}").touch()
            while not (self._folder / "enough").exists():
                time.sleep(0.05)
        return self._pairs[index]


def wait_for(there: Callable[[], bool], thread: threading.Thread) -> None:
    deadline = time.monotonic() + 400
    while not there():
        assert thread.is_alive(), "the run has ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_grows_with_the_cluster_and_shrinks_with_it(one_node, tmp_path):
    signs = tmp_path / "signs"
    signs.mkdir()
    trainer = AveragingTrainer(
        mlp64(1, blocks=3),
        F.cross_entropy,
        workers=(1, 2),
        tau=2,
        delay=1,
        optimizer=functools.partial(SGD, lr=0.05, momentum=0.9),
        checkpoint_every=1,
        checkpoint_minutes=0,
        resources_per_worker={"CPU": 1},
        resize_s=2,
        run_config=RunConfig(
            name="elastic",
            storage_path=str(tmp_path),
            failure_config=FailureConfig(max_failures=2),
        ),
    )
    found: list[Any] = []
    data = Waiting(batches("mlp", 12, seed=2), signs)
    thread = threading.Thread(
        target=lambda: found.append(trainer.fit(data, epochs=2, report_every=1, progress=False))
    )
    thread.start()
    wait_for((signs / "workers-1").exists, thread)
    # A node is added by the main thread, as Ray wants it.
    node = one_node.add_node(num_cpus=1)
    wait_for((signs / "workers-2").exists, thread)
    (signs / "workers-1").unlink()
    one_node.remove_node(node, allow_graceful=False)
    wait_for((signs / "workers-1").exists, thread)
    (signs / "enough").touch()
    thread.join(400)
    (result,) = found
    rows = result.table.to_pylist()
    assert [row["epoch"] for row in rows if row["epoch"]] == [1, 2]
    assert rows[-1]["workers"] == 1
    assert rows[-1]["step"] >= 12
    # No batch was left out, and none but those since a checkpoint came twice.
    assert sum(row["samples"] for row in rows if row["epoch"] is None) >= 2 * 12 * 8
