"""Servers of several shards and their workers in one process, over local wires."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import LinkError
from actors.server.ends import Ends
from actors.server.loop import ServerLoop
from actors.server.seat import Seat
from actors.server.server_runner import SUSPENDED, ServerRunner
from actors.server.shard_links import ShardLinks
from actors.server.shard_log import links_of, shard_links, shard_member
from actors.server.shard_loop import ShardLoop
from actors.server.shard_runner import ShardRunner, part_of
from actors.server.slices import Slices
from actors.server.staleness import Bound
from actors.server.worker_loop import WorkerLoop
from actors.server.worker_runner import WorkerRunner
from actors.wires.doorbell import Doorbell
from actors.wires.link import Link
from actors.wires.local_wire import local_wire
from actors.wires.mailbox import Inbox, Outbox
from raylab.algorithms.server.rule_factory import bound, worker_rule
from raylab.algorithms.server.shards import Cut, slice_rule
from raylab.drivers.server.checkpoints import _range, _server
from tests.server_problems import linear, linear_objectives, settings_for

pytestmark = pytest.mark.unit

DIM = 70
METHODS = ["dis_dfsdca", "cocoa_plus", "asysgd", "asysvrg", "sgd_svrg"]


class Town:
    """All servers, all workers and the parts that they have kept."""

    def __init__(
        self,
        method: str,
        workers: int,
        servers: int,
        *,
        seed: int | None = None,
        messages: int = 40,
        every: int = 0,
        parts: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.shuffle = None if seed is None else random.Random(seed)
        self.servers = servers
        self.objectives = linear_objectives(linear(n=60, d=DIM), workers)
        self.config = config = settings_for(method, self.objectives, **options)
        self.cut = Cut(dim=DIM, servers=servers) if servers > 1 else None
        self.parts = parts or {}
        self.saved: dict[tuple[str, int], dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.boxes: dict[Link, tuple[Outbox, Inbox]] = {}
        self.wires: dict[Link, Any] = {}
        self.bells: list[Doorbell[tuple[str, int]]] = []
        rules = [slice_rule(config, np.zeros(DIM), servers, s) for s in range(servers)]
        log = [e for s in range(1, servers) for e in shard_links(s)]
        for link in log:
            self.open(link)
        bell = self.bell()
        given = bound(config)
        links = None
        if servers > 1:
            boxes = [
                (self.boxes[acks][1], self.boxes[out][0])
                for out, acks in zip(log[::2], log[1::2], strict=True)
            ]
            links = ShardLinks(rules[0], boxes, bell, self.turn_shards, patience_s=0.0)
        self.first = ServerRunner(
            ServerLoop(
                rules[0] if links is None else links.lead,
                Bound(updates=given.updates, late=given.late),
                Ends(messages=messages, certify_samples=60),
                config.broadcast,
            ),
            self.rows.append,
            epoch_samples=60,
            bell=bell,
            checkpoints=CheckpointPlan(every_batches=every),
            save=lambda step, part: self.saved.update({("server", step): part}),
            shards=links,
        )
        self.shards = [self.shard(s, rules[s]) for s in range(1, servers)]
        self.workers: dict[int, WorkerRunner] = {}
        self.ended = False
        seats = {k: self.arrive(k, self.parts.get(f"worker-{k}")) for k in range(workers)}
        self.first.start(seats, self.parts.get("server"))

    def bell(self) -> Doorbell[tuple[str, int]]:
        self.bells.append(Doorbell())
        return self.bells[-1]

    def open(self, link: Link) -> None:
        sending, receiving = self.wires[link] = local_wire(self.shuffle, link.name)
        self.boxes[link] = (
            Outbox(link.name, sending, link.capacity),
            Inbox(link.name, receiving, link.capacity),
        )

    def shard(self, s: int, rule: Any) -> ShardRunner:
        name = f"server-{s}"
        if name in self.parts:
            rule.restore(self.parts[name]["rule"])

        def save(step: int, state: Any) -> None:
            self.saved[name, step] = part_of(step, state, runner.carried_bytes)

        out, acks = shard_links(s)
        runner = ShardRunner(
            ShardLoop(rule, save),
            self.boxes[out][1],
            self.boxes[acks][0],
            bell=self.bell(),
            who=name,
        )
        return runner

    def arrive(self, k: int, part: dict[str, Any] | None = None) -> Seat:
        """A process of a worker; the other shards have it first, the seat is the first server's."""
        rule = worker_rule(self.config, self.objectives[k], k)
        if part is not None:
            rule.restore(part)
        links = links_of(k, self.servers)
        for link in links:
            self.open(link)
        seats, boxes = {}, []
        for pushes, answers in zip(links[::2], links[1::2], strict=True):
            seats[pushes.target] = Seat(self.boxes[pushes][1], self.boxes[answers][0])
            boxes.append((self.boxes[answers][1], self.boxes[pushes][0]))
        for s, shard in enumerate(self.shards, 1):
            shard.join(k, seats[shard_member(s)])

        def save(step: int, state: Any) -> None:
            self.saved[f"worker-{k}", step] = dict(state)

        (inbox, outbox), *others = boxes
        self.workers[k] = WorkerRunner(
            WorkerLoop(rule, save),
            k,
            inbox,
            outbox,
            slices=None if self.cut is None else Slices(self.cut, len(others)),
            shards=others,
        )
        return seats[shard_member(0)]

    def die(self, k: int) -> None:
        del self.workers[k]
        for link in links_of(k, self.servers):
            for end in self.wires[link]:
                end.cut()

    def turn_shards(self) -> None:
        for shard in self.shards:
            shard.advance()

    def turn(self) -> bool:
        runners: list[Any] = [self.first, *self.shards, *self.workers.values()]
        if self.shuffle is not None:
            self.shuffle.shuffle(runners)
        moved = [each.advance() for each in runners if not each.finished]
        names = {"server", *(f"server-{s}" for s in range(1, self.servers))}
        steps = [step for name, step in self.saved if name == "server"]
        whole = [each for each in steps if all((name, each) in self.saved for name in names)]
        self.first.committed = max(whole, default=-1)
        if self.first.finished and not self.ended:
            self.ended = True
            self.first.settle(0.0)
        return any(moved)

    def run(self) -> None:
        still = 0
        everybody = [self.first, *self.shards]
        while not all(each.finished for each in [*everybody, *self.workers.values()]):
            still = 0 if self.turn() else still + 1
            assert still < 300, "nobody can go on"

    def weights(self) -> torch.Tensor:
        loop = self.first.loop
        found = [
            loop.rule.weights(loop.state.final),
            *(each.loop.weights() for each in self.shards),
        ]
        return torch.cat([each["w"] for each in found])

    def newest(self) -> dict[str, Any]:
        step = max(step for name, step in self.saved if name == "server")
        return {name: part for (name, at), part in self.saved.items() if at == step}


@pytest.fixture
def found() -> Iterator[Callable[..., Town]]:
    """Found a town; its bells are taken down at the end."""
    towns: list[Town] = []

    def make(*arguments: Any, **options: Any) -> Town:
        towns.append(Town(*arguments, **options))
        return towns[-1]

    yield make
    for each in towns:
        for bell in each.bells:
            bell.close()


def assert_related(town: Town) -> None:
    rows = [row for row in town.rows if "rewound" not in row]
    assert len(rows) >= 2
    assert max(row.get("relation", 0.0) for row in rows) < 1e-12


@pytest.mark.parametrize("method", [*METHODS, "sdca", "dfsdca"])
def test_one_worker_gets_the_same_bits_of_any_number_of_servers(found, method):
    one = found(method, 1, 1, messages=25)
    one.run()
    town = found(method, 1, 3, seed=2, messages=25)
    town.run()
    assert torch.equal(town.weights(), one.weights())
    assert [row["step"] for row in town.rows] == [row["step"] for row in one.rows]
    for row, expected in zip(town.rows, one.rows, strict=True):
        for name in ("primal", "gradient_norm", "duality_gap"):
            assert row[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12)
    assert_related(town)
    shares = town.rows[-1]["server_bytes"]
    assert len(shares) == 3
    assert sum(shares) == town.rows[-1]["bytes"]
    # Headers and the names of certificates pass everywhere, everything else once.
    assert max(shares) < 0.75 * one.rows[-1]["bytes"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [None, 1])
def test_every_message_is_applied_by_every_shard_however_it_is_delivered(found, method, seed):
    options = {"broadcast": 2, "local_steps": 2} if method == "dis_dfsdca" else {}
    town = found(method, 3, 3, seed=seed, **options)
    town.run()
    assert town.first.loop.state.ended_by == "messages"
    assert_related(town)
    assert max(row["staleness_max"] for row in town.rows) <= town.config.delta_updates


@pytest.mark.parametrize("seed", [None, 6, 7])
def test_a_lost_worker_comes_back_to_all_shards_with_what_it_had_kept(found, seed):
    town = found("dis_dfsdca", 3, 2, seed=seed, messages=150, every=12, local_steps=2)
    while town.first.loop.state.messages < 40 or not any(
        name == "worker-1" for name, _ in town.saved
    ):
        town.turn()
    town.die(1)
    while not town.first.cut:
        town.turn()
    step = max(step for name, step in town.saved if name == "worker-1")
    # As the watch tells them: the other shards first.
    town.shards[0].lose(1)
    town.first.lose(1, step)
    before = town.first.loop.state.messages
    while town.first.loop.state.messages < before + 5:
        town.turn()
    seat = town.arrive(1, town.saved["worker-1", step])
    town.first.join(1, seat)
    town.run()
    assert_related(town)
    assert town.first.loop.state.messages >= 150


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("method", ["dis_dfsdca", "asysvrg"])
def test_a_run_goes_on_from_a_checkpoint_with_any_number_of_servers(found, method, servers):
    """With one worker all of them come to the same bits."""
    town = found(method, 1, 2, messages=20, every=10)
    town.run()
    kept = {name: part for (name, step), part in town.saved.items() if step == 10}
    assert set(kept) == {"server", "server-1", "worker-0"}
    as_before = found(method, 1, 2, messages=50, parts=kept)
    as_before.run()
    saved: Any = SimpleNamespace(step=10, about={"servers": 2}, part=kept.__getitem__)
    parts = {_server(s): _range(saved, servers, s) for s in range(servers)}
    again = found(method, 1, servers, messages=50, parts={**parts, "worker-0": kept["worker-0"]})
    assert again.first.loop.state.messages < 20
    again.run()
    assert torch.equal(again.weights(), as_before.weights())
    assert_related(again)


def test_a_suspended_run_is_kept_whole_at_its_end_by_every_shard(found):
    town = found("dis_dfsdca", 2, 2, seed=3, messages=600, local_steps=2)
    while town.first.loop.state.messages < 20:
        town.turn()
    town.first.suspend()
    town.run()
    assert town.first.loop.state.ended_by == SUSPENDED
    parts = town.newest()
    assert set(parts) == {"server", "server-1", "worker-0", "worker-1"}
    w = torch.cat([parts[name]["rule"]["w"] for name in ("server", "server-1")])
    # Added up anew, so but for the rounding.
    assert torch.allclose(w, town.weights(), rtol=1e-12, atol=1e-14)


def test_a_shard_that_is_gone_ends_the_run(found):
    town = found("asysgd", 2, 2)
    for _ in range(5):
        town.turn()
    for link in shard_links(1):
        for end in town.wires[link]:
            end.cut()
    with pytest.raises(LinkError, match="acks -1->0 was cut"):
        town.first.advance()
