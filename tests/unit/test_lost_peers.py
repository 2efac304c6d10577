"""A worker whose peers are gone, and one that is itself at fault."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from actors.averaging.collective import DistributedCollective, own_group
from actors.errors import LinkError
from raylab.drivers.averaging import on_ray
from raylab.errors import RaylabError

pytestmark = pytest.mark.unit


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[DistributedCollective]:
    """The only seat of a process group."""
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield DistributedCollective(None, torch.device("cpu"))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.mark.parametrize(
    "ask",
    [
        lambda seat: seat.sum(torch.ones(3)).wait(),
        lambda seat: seat.gather(torch.ones(3)).wait(),
        lambda seat: seat.size,
        lambda _: own_group(),
    ],
    ids=["sum", "gather", "size", "own group"],
)
def test_a_group_that_was_destroyed_under_a_worker_is_a_lost_link(alone, ask):
    ask(alone)
    dist.destroy_process_group()
    with pytest.raises(LinkError, match="the other workers cannot be reached"):
        ask(alone)


def test_a_worker_that_lacks_memory_has_not_lost_its_peers(alone, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no room for the average")

    monkeypatch.setattr(dist, "all_reduce", full)
    with pytest.raises(torch.OutOfMemoryError):
        alone.sum(torch.ones(3))


class Board:
    """Takes the failures that end a run for good."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.failure = types.SimpleNamespace(remote=lambda: None)
        self.fail = types.SimpleNamespace(remote=self.failures.append)
        self.put = types.SimpleNamespace(remote=lambda kind, note: None)


@pytest.mark.parametrize("destroyed", [False, True])
def test_an_error_after_the_groups_end_is_no_fault_of_the_users(alone, monkeypatch, destroyed):
    """Ray Train destroys the groups while the survivors compute: the error may come anywhere."""

    def train(course, board):
        if destroyed:
            dist.destroy_process_group()
        raise ValueError("a group must be there")

    monkeypatch.setattr(on_ray, "_train", train)
    monkeypatch.setattr(on_ray.ray, "get", lambda found: found)
    board = Board()
    with pytest.raises(LinkError if destroyed else RaylabError):
        on_ray.train_worker(None, board, torch.get_num_threads())
    assert [type(each) for each in board.failures] == ([] if destroyed else [RaylabError])
