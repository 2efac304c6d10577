"""A pipeline over two Ray nodes: encrypted links between them, the same numbers as on one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from ray.train import RunConfig
from torch.nn import functional as F

from actors.groups.opening import Opening
from actors.pipeline.stage_actor import StageActor
from actors.wires.link import Link
from raylab import PipelineTrainer
from tests.helpers import run_pipeline, torch_optimiser
from tests.reference.networks import batches, conv_bn64
from tests.reference.pipeline import Optimiser

pytestmark = pytest.mark.cluster

SGD = Optimiser(kind="sgd", lr=0.05, momentum=0.9)


@pytest.fixture(scope="module")
def two_nodes(nodes) -> Iterator[Cluster]:
    with nodes(1, 1) as cluster:
        yield cluster


@pytest.mark.usefixtures("two_nodes")
def test_stages_on_two_nodes_talk_over_encrypted_tcp(tmp_path, monkeypatch):
    seen: list[tuple[Link, str]] = []
    transport = Opening._transport

    def watched(self: Opening, link: Link) -> str:
        seen.append((link, transport(self, link)))
        return seen[-1][1]

    monkeypatch.setattr(Opening, "_transport", watched)
    model, data = conv_bn64(1), batches("conv", 6, ragged=True, seed=2)
    result = PipelineTrainer(
        model,
        F.cross_entropy,
        method="adl",
        stages=[4],
        optimizer=torch_optimiser(SGD),
        resources_per_stage={"CPU": 1},
        run_config=RunConfig(storage_path=str(tmp_path)),
    ).fit(data, epochs=2, progress=False)
    assert {kind for _, kind in seen} == {"tcp"}
    alone = run_pipeline(model, method="adl", cuts=[4], epochs=[data, data], optimiser=SGD)
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], tensor)


@pytest.mark.usefixtures("two_nodes")
def test_a_listener_between_nodes_takes_the_keys_of_its_pipeline_only():
    receiver, sender, stranger = (
        StageActor.options(num_cpus=0.1).remote(k, 1, 0) for k in range(3)
    )
    homes = ray.get([each.home.remote() for each in (receiver, sender, stranger)])
    link = Link(box="features", source=1, target=0, capacity=2)
    address = ray.get(receiver.listen.remote(link, "zmq", "tcp", sender, homes[1].public_key))
    assert address.server_key == homes[0].public_key
    ray.get(stranger.connect.remote(link, address, receiver))
    accepted = receiver.accept.remote()
    ready, _ = ray.wait([accepted], timeout=2)
    assert ready == []
    ray.get(sender.connect.remote(link, address, receiver))
    assert ray.get(accepted, timeout=30) is None
    for each in (receiver, sender, stranger):
        ray.kill(each)
