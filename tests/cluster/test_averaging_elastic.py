"""A run that grows when a node comes and shrinks when it is lost."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Iterator
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
    """Batches whose last ones do not come before the test has seen enough.

    Args:
        pairs: the batches.
        port: where the test is told with how many workers the epoch's end was come to.
    """

    def __init__(self, pairs: list[Any], port: int) -> None:
        self._pairs, self._port = pairs, port

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pairs)

    def batch(self, index: int) -> Any:
        if index >= len(self._pairs) - 2 and dist.is_initialized():
            # The test hangs up when it has seen enough, and nobody answers any more.
            with (
                contextlib.suppress(ConnectionError),
                socket.create_connection(("127.0.0.1", self._port)) as line,
            ):
                line.sendall(bytes([dist.get_world_size()]))
                line.recv(1)
        return self._pairs[index]


class Desk:
    """Where workers that have come to the epoch's end are kept waiting."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(400)
        self._lines: list[socket.socket] = []
        self.port: int = self._server.getsockname()[1]

    def wait_for(self, workers: int) -> None:
        """Return when one of a group of so many is there."""
        while True:
            line, _ = self._server.accept()
            line.settimeout(60)
            self._lines.append(line)
            # One that was lost meanwhile has said nothing.
            if line.recv(1) == bytes([workers]):
                return

    def shut(self) -> None:
        """Make `wait_for` fail, in whatever thread it is called."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for line in (self._server, *self._lines):
            line.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    found = Desk()
    yield found
    found.close()


def test_a_run_grows_with_the_cluster_and_shrinks_with_it(one_node, desk, tmp_path):
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
    data = Waiting(batches("mlp", 12, seed=2), desk.port)

    def fit() -> None:
        try:
            found.append(trainer.fit(data, epochs=2, report_every=1, progress=False))
        finally:
            desk.shut()

    thread = threading.Thread(target=fit)
    thread.start()
    desk.wait_for(workers=1)
    # A node is added by the main thread, as Ray wants it.
    node = one_node.add_node(num_cpus=1)
    desk.wait_for(workers=2)
    one_node.remove_node(node, allow_graceful=False)
    desk.wait_for(workers=1)
    desk.close()
    thread.join(400)
    (result,) = found
    rows = result.table.to_pylist()
    assert [row["epoch"] for row in rows if row["epoch"]] == [1, 2]
    assert rows[-1]["workers"] == 1
    assert rows[-1]["step"] >= 12
    # No batch was left out, and none but those since a checkpoint came twice.
    assert sum(row["samples"] for row in rows if row["epoch"] is None) >= 2 * 12 * 8
