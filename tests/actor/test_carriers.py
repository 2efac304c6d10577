"""Tensors carried beside the wire by torch.distributed, here gloo between two processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig
from torch import Tensor, nn
from torch.nn import functional as F

from actors.errors import LinkError
from actors.pipeline.stage_actor import StageWorker
from actors.wires.link import Link
from actors.wires.messages import Kind, Message
from actors.wires.process_groups import LOOPBACK
from raylab import PipelineTrainer, Result
from tests.helpers import torch_optimiser
from tests.mines import MinedBlock
from tests.reference.networks import batches, conv_bn64, mlp64
from tests.reference.pipeline import Optimiser

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

PATIENCE_S = 60.0
UP = Link(box="features", source=0, target=1, capacity=3)
DOWN = Link(box="gradients", source=1, target=0, capacity=3)
SENT = (
    torch.randn(300, 40, dtype=torch.float64).T,
    None,
    torch.empty(0, 3),
    torch.tensor([[True, False]]),
    torch.tensor(7, dtype=torch.int16),
    torch.tensor([1 + 2j, 3j]).conj(),
    torch.arange(5).to(torch.bfloat16),
)
SGD = Optimiser(kind="sgd", lr=0.05, momentum=0.9, weight_decay=1e-2)


def fit(path, **options) -> Result:
    model, data = conv_bn64(1), batches("conv", 6, ragged=True, seed=3)
    trainer = PipelineTrainer(
        model,
        F.cross_entropy,
        optimizer=torch_optimiser(SGD),
        run_config=RunConfig(storage_path=str(path)),
        resources_per_stage={"CPU": 0.1},
        stages=3,
        **options,
    )
    return trainer.fit(data, epochs=2, test=data[:2], report_every=2, progress=False)


def test_a_run_whose_tensors_are_carried_beside_the_wire_is_bit_identical(tmp_path):
    carried = fit(tmp_path / "carried", method="adl", carrier="distributed")
    inline = fit(tmp_path / "inline", method="adl", carrier="inline")
    for name, tensor in inline.model.state_dict().items():
        assert torch.equal(carried.model.state_dict()[name], tensor)
    figures = ["loss", "test_loss", "accuracy", "stage_features_out_bytes"]
    for there, here in zip(carried.table.to_pylist(), inline.table.to_pylist(), strict=True):
        assert [there.get(key) for key in figures] == [here.get(key) for key in figures]


# ------------------------------------------------------------------ two processes and their links


class Peer(StageWorker):
    """A stage that is told message by message what to do."""

    def put(self, index: int, tensors: tuple[Tensor | None, ...], box: str = "features") -> int:
        """Put a message; return how many messages the carrier keeps."""
        self._put(box, Message(Kind.BATCH, index, tensors))
        return self.kept(box)

    def take(self, box: str = "features") -> tuple[Tensor | None, ...]:
        return self._take(box).tensors

    def put_many(self, count: int, box: str) -> None:
        for n in range(count):
            self.put(n, (torch.ones(2_000_000),), box)

    def settle(self, box: str = "features") -> int:
        self._outbox(box).settle(PATIENCE_S)
        return self.kept(box)

    def pid(self) -> int:
        return os.getpid()

    def kept(self, box: str) -> int:
        carrier: Any = self._outbox(box)._carrier
        return carrier.held

    def header_there(self) -> bool:
        """Wait for a header and leave it where it is."""
        end: Any = self._inbox("features")._end
        return end._watch.there(PATIENCE_S)

    def listens_at(self) -> set[str]:
        """Return the addresses, in hexadecimal, that this process listens at."""
        own = set()
        for each in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(str(each.readlink()))
        tables = [Path("/proc/self/net", name).read_text() for name in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table.splitlines()[1:]]
        return {
            row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own
        }


@pytest.fixture
def peers() -> Iterator[list[Any]]:
    actor: Any = ray.remote(concurrency_groups={"control": 1, "mail": 1})(Peer)
    made = [actor.options(num_cpus=0.1).remote(stage, 1, 0) for stage in range(2)]
    homes = ray.get([peer.home.remote() for peer in made])
    before = ray.get([peer.listens_at.remote() for peer in made])
    place = ray.get(made[0].open_store.remote(LOOPBACK))
    ray.get([peer.join.remote(place, 2, [UP, DOWN]) for peer in made])
    after = ray.get([peer.listens_at.remote() for peer in made])
    assert set.union(*after) - set.union(*before) <= {"0100007F"}
    for link in (UP, DOWN):
        source, target = made[link.source], made[link.target]
        key = homes[link.source].public_key
        call = target.listen.remote(link, "zmq", "ipc", source, key, "distributed")
        ray.get(source.connect.remote(link, ray.get(call), target, "distributed"))
    ray.get([peer.accept.remote() for peer in made])
    yield made
    for peer in made:
        ray.kill(peer)


def test_tensors_of_any_kind_arrive_bit_for_bit_and_are_let_go_when_taken(peers):
    below, above = peers
    assert ray.get([below.put.remote(n, SENT) for n in range(3)]) == [1, 2, 3]
    # The other way meanwhile: one link does not wait for another.
    ray.get(above.put.remote(0, (torch.ones(2),), "gradients"))
    (gradient,) = ray.get(below.take.remote("gradients"))
    assert torch.equal(gradient, torch.ones(2))
    for got in ray.get([above.take.remote() for _ in range(3)]):
        for there, sent in zip(got, SENT, strict=True):
            assert (there is None) is (sent is None)
            if there is not None and sent is not None:
                assert there.dtype == sent.dtype
                assert torch.equal(there, sent)
    assert ray.get(below.settle.remote()) == 0


def test_a_peer_that_dies_with_a_tensor_under_way_is_a_cut_link(peers):
    below, above = peers
    ray.get(below.put.remote(0, (torch.ones(2_000_000),)))
    assert ray.get(above.header_there.remote())
    dying = ray.get(below.pid.remote())
    ended = os.pidfd_open(dying)
    os.kill(dying, signal.SIGKILL)
    assert select.select([ended], [], [], PATIENCE_S)[0]
    os.close(ended)
    with pytest.raises(LinkError, match=r"features 0->1 was cut: its tensors cannot pass"):
        ray.get(above.take.remote(), timeout=PATIENCE_S)
    with pytest.raises(LinkError, match=r"gradients 1->0 was cut"):
        ray.get(above.put_many.remote(5, "gradients"), timeout=PATIENCE_S)


def test_a_receiver_that_dies_is_a_cut_link(peers):
    below, above = peers
    ray.get(below.put.remote(0, (torch.ones(2_000_000),)))
    ray.kill(above)
    with pytest.raises(LinkError, match=r"features 0->1 was cut"):
        ray.get(below.put_many.remote(5, "features"), timeout=PATIENCE_S)


def test_a_stage_that_is_killed_is_replaced_and_its_tensors_are_carried_anew(tmp_path):
    def run(name: str, mines: list[Any], **options: Any) -> Result:
        model = mlp64(3, blocks=4)
        for stage in range(2):
            block = 2 * stage
            model[block] = MinedBlock(
                model[block], tmp_path / name / str(stage), mines if stage == 1 else []
            )
        trainer = PipelineTrainer(
            model,
            nn.CrossEntropyLoss(),
            method="adl",
            stages=[2],
            checkpoint_every=4,
            checkpoint_minutes=0,
            resources_per_stage={"CPU": 0.1},
            run_config=RunConfig(
                name=name,
                storage_path=str(tmp_path / "runs"),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                failure_config=FailureConfig(max_failures=len(mines)),
            ),
            **options,
        )
        return trainer.fit(batches("mlp", 10, seed=5), epochs=2, progress=False)

    killed = run("killed", [(7, "forward"), (6, "backward")], carrier="distributed")
    expected = run("undisturbed", [])
    assert len(list((tmp_path / "killed" / "1").iterdir())) == 2
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(killed.model.state_dict()[name], tensor)
