"""A server and its workers in one process, over local wires: what is told, once, whatever comes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import StageError
from actors.server.ends import Ends
from actors.server.exchange import server_links
from actors.server.loop import ServerLoop
from actors.server.seat import Seat
from actors.server.server_runner import ASKED, SUSPENDED, ServerRunner
from actors.server.staleness import Bound
from actors.server.worker_loop import WorkerLoop
from actors.server.worker_runner import WorkerRunner
from actors.wires.doorbell import Doorbell
from actors.wires.local_wire import local_wire
from actors.wires.mailbox import Inbox, Outbox
from tests.server_rules import CountingServer, CountingWorker, draw

pytestmark = pytest.mark.unit


class Town:
    """A server, its workers and the parts that they have kept."""

    def __init__(
        self,
        rule: CountingServer,
        workers: int,
        *,
        seed: int | None = None,
        ends: Ends | None = None,
        bound: Bound | None = None,
        broadcast: int = 0,
        checkpoints: CheckpointPlan | None = None,
        parts: dict[str, dict[str, Any]] | None = None,
        late: dict[int, float] | None = None,
    ) -> None:
        self.shuffle = None if seed is None else random.Random(seed)
        self.rule = rule
        self.rows: list[dict[str, Any]] = []
        self.saved: dict[tuple[str, int], dict[str, Any]] = {}
        self.napped: list[float] = []
        self.acknowledges = True
        self.bell: Doorbell[tuple[str, int]] = Doorbell()
        loop = ServerLoop(rule, bound or Bound(), ends or Ends(messages=60), broadcast)
        self.server = ServerRunner(
            loop,
            self.rows.append,
            epoch_samples=10,
            bell=self.bell,
            checkpoints=checkpoints,
            save=lambda step, part: self.saved.update({("server", step): part}),
        )
        self.workers: dict[int, WorkerRunner] = {}
        self.wires: dict[int, list[Any]] = {}
        seats = {
            k: self.arrive(k, None if parts is None else parts[f"worker-{k}"])
            for k in range(workers)
        }
        self.server.start(seats, None if parts is None else parts["server"], late=late)

    def arrive(self, k: int, part: dict[str, Any] | None = None) -> Seat:
        rule = CountingWorker(k)
        if part is not None:
            rule.restore(part)
        boxes = []
        self.wires[k] = []
        for link in server_links(k):
            sending, receiving = local_wire(self.shuffle, link.name)
            self.wires[k] += [sending, receiving]
            boxes += [
                Outbox(link.name, sending, link.capacity),
                Inbox(link.name, receiving, link.capacity),
            ]
        pushing, pushed, answering, answered = boxes

        def save(step: int, state: Any) -> None:
            self.saved[f"worker-{k}", step] = dict(state)

        loop = WorkerLoop(rule, save)
        self.workers[k] = WorkerRunner(loop, k, answered, pushing, nap=self.napped.append)
        return Seat(pushed, answering)

    def die(self, k: int) -> None:
        del self.workers[k]
        for end in self.wires[k]:
            end.cut()

    def turn(self) -> bool:
        runners = [self.server, *self.workers.values()]
        if self.shuffle is not None:
            self.shuffle.shuffle(runners)
        moved = [each.advance() for each in runners if not each.finished]
        steps = [step for name, step in self.saved if name == "server"]
        if self.acknowledges:
            self.server.committed = max(steps, default=-1)
        return any(moved)

    def run(self) -> None:
        still = 0
        while not all(each.finished for each in [self.server, *self.workers.values()]):
            still = 0 if self.turn() else still + 1
            assert still < 200, "nobody can go on"

    def newest(self) -> dict[str, dict[str, Any]]:
        step = max(step for name, step in self.saved if name == "server")
        return {name: part for (name, at), part in self.saved.items() if at == step}


@pytest.fixture
def found() -> Iterator[Callable[..., Town]]:
    """Found a town; its bell is taken down at the end."""
    towns: list[Town] = []

    def make(*arguments: Any, **options: Any) -> Town:
        towns.append(Town(*arguments, **options))
        return towns[-1]

    yield make
    for each in towns:
        each.bell.close()


def assert_applied_once(town: Town) -> None:
    """Every message that counts was applied once, and its worker was told so."""
    total = torch.zeros(100, dtype=torch.float64)
    for worker, number in town.rule.applied:
        total += draw(worker, number, 100)
    assert torch.equal(town.server.loop.state.final[0], total)
    assert max(Counter(town.rule.applied).values()) == 1
    for k, each in town.workers.items():
        assert torch.equal(each.loop.rule.sum, town.rule.sums[k])  # type: ignore[attr-defined]
    assert all(row["relation"] == 0 for row in town.rows)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"bound": Bound(updates=3)},
        {"bound": Bound(updates=0, late="refresh")},
        {"broadcast": 2, "rule": {"pieces": 3}},
        {"rule": {"per_phase": 7}},
        {"rule": {"gather": True, "per_phase": 4}},
    ],
    ids=["free", "wait", "refresh", "broadcast", "phases", "rounds"],
)
def test_every_message_is_applied_once_however_it_is_delivered(found, kind, seed):
    kind = dict(kind)
    rule = CountingServer(4, **kind.pop("rule", {}))
    ends = Ends(messages=60, certify_samples=13)
    town = found(rule, 4, seed=seed, ends=ends, **kind)
    town.run()
    assert town.server.loop.state.ended_by == "messages"
    assert len(town.rule.applied) >= 60
    assert_applied_once(town)
    assert len(town.rows) >= 5
    assert town.rows[-1]["epoch"] == town.rows[-1]["samples_seen"] / 10
    assert town.rows[-1]["bytes"] > 0
    bound = kind.get("bound")
    if bound is not None:
        assert max(row["staleness_max"] for row in town.rows) <= bound.updates


@pytest.mark.parametrize("seed", [None, 4, 5])
def test_a_rise_takes_server_and_workers_back_together(found, seed):
    rule = CountingServer(3, bad=(3, 4, 6))
    town = found(rule, 3, seed=seed, ends=Ends(messages=90, certify_samples=9))
    town.run()
    assert sum("rewound" in row for row in town.rows) == 3
    for k, each in town.workers.items():
        assert torch.equal(each.loop.rule.sum, rule.sums[k])  # type: ignore[attr-defined]
    assert all(row["relation"] == 0 for row in town.rows)


@pytest.mark.parametrize("seed", [None, 6, 7])
def test_a_lost_worker_comes_back_with_what_it_had_kept(found, seed):
    town = found(
        CountingServer(3),
        3,
        seed=seed,
        ends=Ends(messages=120, certify_samples=20),
        checkpoints=CheckpointPlan(every_batches=15),
    )
    while town.server.loop.state.messages < 50 or not any(
        name == "worker-1" for name, _ in town.saved
    ):
        town.turn()
    town.die(1)
    while not town.server.cut:
        town.turn()
    (worker, why) = town.server.cut.pop()
    assert worker == 1
    assert "pushes 2->0 was cut" in why
    before = town.server.loop.state.messages
    step = max(step for name, step in town.saved if name == "worker-1")
    town.server.lose(1, step)
    while town.server.loop.state.messages < before + 10:
        town.turn()
    town.server.join(1, town.arrive(1, town.saved["worker-1", step]))
    town.run()
    assert all(row["relation"] == 0 for row in town.rows)
    for k, each in town.workers.items():
        assert torch.equal(each.loop.rule.sum, town.rule.sums[k])  # type: ignore[attr-defined]
    assert town.server.loop.state.messages >= 120


@pytest.mark.parametrize("seed", [None, 8])
def test_a_run_goes_on_from_a_checkpoint_with_nothing_in_flight(found, seed):
    ends = Ends(messages=60, certify_samples=20)
    plan = CheckpointPlan(every_batches=10)
    town = found(CountingServer(3), 3, seed=seed, ends=ends, checkpoints=plan)
    town.run()
    parts = town.newest()
    assert set(parts) == {"server", "worker-0", "worker-1", "worker-2"}
    again = found(CountingServer(3), 3, seed=seed, ends=ends, parts=parts)
    began = again.server.loop.state.messages
    assert 0 < began <= 60
    again.run()
    assert again.server.loop.state.messages >= 60
    assert all(row["relation"] == 0 for row in again.rows)
    # No task is given twice.
    assert not set(town.rule.applied[:10]) & set(again.rule.applied)
    assert again.rows[-1]["time_s"] > parts["server"]["figures"]["ran_s"]


def test_a_checkpoint_begins_only_when_the_one_before_is_whole(found):
    """A rule remembers two: with more, a lost worker's part might be one that is forgotten."""
    plan = CheckpointPlan(every_batches=5)
    town = found(CountingServer(2), 2, ends=Ends(messages=60), checkpoints=plan)
    town.acknowledges = False
    while town.server.loop.state.messages < 30:
        town.turn()
    steps = {step for _, step in town.saved}
    assert len(steps) == 1
    town.acknowledges = True
    town.run()
    assert len({step for _, step in town.saved}) > 3


@pytest.mark.parametrize("seed", [None, 9])
def test_a_suspended_run_is_kept_whole_at_its_end(found, seed):
    town = found(CountingServer(3), 3, seed=seed, ends=Ends(messages=600))
    while town.server.loop.state.messages < 40:
        town.turn()
    town.server.suspend()
    town.run()
    assert town.server.loop.state.ended_by == SUSPENDED
    parts = town.newest()
    for k in range(3):
        assert torch.equal(parts[f"worker-{k}"]["sum"], town.rule.sums[k])
    assert parts["server"]["step"] == town.server.loop.state.version
    assert_applied_once(town)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_run_that_is_asked_to_end_applies_what_is_under_way_and_certifies_it(found, seed):
    town = found(CountingServer(3), 3, seed=seed, ends=Ends(messages=10_000, certify_samples=13))
    while not town.rows:
        town.turn()
    town.server.end()
    town.run()
    assert town.server.loop.state.ended_by == ASKED
    assert town.rows[-1]["messages"] == town.server.loop.state.messages == len(town.rule.applied)
    assert_applied_once(town)


def test_news_does_not_take_the_credit_of_a_reply(found):
    """A worker that computes takes nothing: whatever the server has to say, a reply fits in."""
    town = found(
        CountingServer(2), 2, ends=Ends(messages=40), broadcast=1, bound=Bound(updates=None)
    )
    slow, fast = town.workers[0], town.workers[1]
    while not slow.loop.pieces_left:
        slow.advance()
        town.server.advance()
    for _ in range(200):
        fast.advance()
        town.server.advance()
    assert town.server.loop.state.messages > 10
    outbox = town.server._seats[0].outbox
    # Two pieces of news, and the task whose push has not come.
    assert outbox.has_room(1)
    assert not outbox.has_room(2)
    assert outbox.statistics.depth == 3
    town.run()
    assert_applied_once(town)


def test_a_worker_naps_for_its_straggler_and_its_modelled_time_only(found):
    town = found(CountingServer(1, pieces=2), 1, ends=Ends(messages=3))

    class Slow:
        def delay_s(self, worker: int, message: int, compute_s: float) -> float:
            assert worker == 0
            return 100.0 * (message + 1)

        def dies(self, worker: int, message: int) -> bool:
            return message == 2

    runner = town.workers[0]
    deaths: list[int] = []
    runner._straggler, runner._sample_s = Slow(), 50.0
    runner._die = lambda: deaths.append(runner._number)
    town.run()
    *_, dying = [each for each in town.napped if each < 50]
    assert dying == pytest.approx(25.0, abs=1.0)
    assert deaths == [2]
    assert [round(each, -1) for each in town.napped if each > 50][:4] == [150, 150, 250, 250]


def test_a_worker_that_is_late_joins_when_it_comes(found):
    town = found(CountingServer(2), 2, ends=Ends(messages=60, certify_samples=20), late={1: 0.0})
    while town.server.loop.state.messages < 10:
        town.workers[0].advance()
        town.server._late = {w: (math.inf, seat) for w, (_, seat) in town.server._late.items()}
        town.server.advance()
    assert {worker for worker, _ in town.rule.applied} == {0}
    assert town.rows == []
    town.server._late = {w: (0.0, seat) for w, (_, seat) in town.server._late.items()}
    town.run()
    assert {worker for worker, _ in town.rule.applied} == {0, 1}
    assert_applied_once(town)


def test_a_failing_rule_tells_who_was_at_what(found):
    town = found(CountingServer(1), 1)
    town.rule.apply = lambda *_: 1 / 0  # type: ignore[assignment, method-assign]
    with pytest.raises(StageError, match="the server failed at push 0 of worker 0: ZeroDiv"):
        town.run()
    town = found(CountingServer(1), 1)
    town.workers[0].loop.rule.message = lambda: 1 / 0  # type: ignore[assignment, method-assign]
    with pytest.raises(StageError, match="worker 0 failed at the computation of message 0: Zero"):
        town.run()
