"""A node whose raylet is killed: its stage goes on elsewhere, and the numbers are the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from ray.train import FailureConfig, RunConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.nn import functional as F

from raylab import PipelineTrainer
from tests.helpers import run_pipeline, torch_optimiser
from tests.mines import MinedBlock
from tests.reference.networks import batches, mlp64
from tests.reference.pipeline import Optimiser

pytestmark = pytest.mark.cluster

SGD = Optimiser(kind="sgd", lr=0.05, momentum=0.9)


@pytest.fixture
def three_nodes(nodes) -> Iterator[Cluster]:
    with nodes(0, 1, 1, 1) as cluster:
        yield cluster


@ray.remote(num_cpus=0, max_restarts=1, max_task_retries=-1)
class Sentinel:
    """Lives on one node and on no other: it cannot be started again once Ray knows that is lost."""

    def is_there(self) -> str:
        """Return the name of its node when it has been started."""
        return ray.get_runtime_context().get_node_id()

    def stand(self) -> None:
        """Never return: the call fails when the node is lost."""
        threading.Event().wait()


def sentinels() -> list[Any]:
    """Post one on every node; return the calls, of which one fails when a node is lost."""
    nodes = [node["NodeID"] for node in ray.nodes()]
    posts = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]  # soft is ignored
    posted = [Sentinel.options(scheduling_strategy=post).remote() for post in posts]
    assert ray.get([each.is_there.remote() for each in posted]) == nodes
    return [each.stand.remote() for each in posted]


@pytest.mark.usefixtures("three_nodes")
def test_a_lost_node_is_replaced_by_one_that_is_there(tmp_path):
    model, data = mlp64(1, blocks=4), batches("mlp", 10, ragged=True, seed=2)
    alone = run_pipeline(model, method="adl", cuts=[2], epochs=[data, data], optimiser=SGD)
    model[2] = MinedBlock(model[2], tmp_path / "mines", [(13, "backward")], victim="raylet")
    standing = sentinels()
    result = PipelineTrainer(
        model,
        F.cross_entropy,
        method="adl",
        stages=[2],
        optimizer=torch_optimiser(SGD),
        resources_per_stage={"CPU": 1},
        checkpoint_every=4,
        checkpoint_minutes=0,
        run_config=RunConfig(
            storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=1)
        ),
    ).fit(data, epochs=2, progress=False)
    assert len(list((tmp_path / "mines").iterdir())) == 1
    # Ray may learn of a lost node after its stage has been replaced.
    assert ray.wait(standing, timeout=60)[0]
    assert sum(node["Alive"] for node in ray.nodes()) == 3  # the head and two of three
    expected = alone.model.state_dict().values()
    for found, tensor in zip(result.model.state_dict().values(), expected, strict=True):
        assert torch.equal(found, tensor)
