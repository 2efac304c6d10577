"""Random servers of several shards: whatever comes when, together they are a server of one.

Everything is delivered by a random number: slices, the log, acks, answers, each link in its order
and all links in any. Beside the shards a whole rule makes the first server's calls on whole
messages.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.server.ends import Ends
from actors.server.lead import Lead
from actors.server.loop import ServerLoop
from actors.server.messages import News, Proof, Push, Reply
from actors.server.shard_log import Entry
from actors.server.shard_loop import ShardLoop
from actors.server.slices import Slices
from actors.server.staleness import Bound
from actors.server.worker_loop import WorkerLoop
from raylab.algorithms.server.parts import as_vector
from raylab.algorithms.server.rule_factory import bound, server_rule, worker_rule
from raylab.algorithms.server.shards import Cut, slice_rule
from tests.server_problems import linear, linear_objectives, pca_objectives, settings_for

pytestmark = pytest.mark.property

RUNS = settings(max_examples=25, deadline=None, derandomize=True)


class Watched(Lead):
    """The first server's rule, and a rule of the whole of w that makes the same calls."""

    def __init__(self, city: City, rule: Any, shards: int, whole: Any) -> None:
        super().__init__(rule, shards, city.ask)
        self.city = city
        self.one = whole
        self.answers: dict[int, torch.Tensor] = {}
        self.snapshot: Any = ()

    def answer(self, worker):
        found = super().answer(worker)
        whole = self.one.answer(worker)
        self.answers[int(found[-1])] = whole[0]
        if worker < 0:
            self.snapshot = whole
        return found

    def apply(self, worker, message, staleness):
        self.one.apply(worker, self.city.sent[worker, self._applied[worker]].tensors, staleness)
        super().apply(worker, message, staleness)

    def close_phase(self):
        self.one.close_phase()
        super().close_phase()

    def certify(self, parts, answer):
        whole = {worker: self.city.proofs[worker].certificate for worker in parts}
        expected = self.one.certify(whole, self.snapshot)
        found = super().certify(parts, answer)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name == "relation":
                assert found[name] < 1e-12
            else:
                assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12)
        return expected

    def judge(self, figures):
        reason = super().judge(figures)
        assert self.one.judge(figures) == reason
        return reason

    def mark(self, worker, number):
        self.one.mark(worker, number)
        super().mark(worker, number)

    def rewind(self, number):
        self.one.rewind(number)
        super().rewind(number)

    def kept(self, worker, step):
        self.one.kept(worker, step)
        super().kept(worker, step)

    def take_back(self, worker, step):
        self.one.take_back(worker, step)
        super().take_back(worker, step)


class Resident:
    """One worker's process, and its links to every shard."""

    def __init__(self, city: City, worker: int, saved: dict[int, Any]) -> None:
        rule = worker_rule(city.config, city.objectives[worker], worker)
        self.saved = saved
        self.step = max(saved, default=None)
        if self.step is not None:
            rule.restore(saved[self.step])
        self.city = city
        self.worker = worker
        self.loop = WorkerLoop(rule, saved.__setitem__)
        self.slices = Slices(city.cut, city.servers - 1)
        self.up: list[deque[Any]] = [deque() for _ in range(city.servers)]
        self.down: list[deque[Any]] = [deque() for _ in range(city.servers)]
        self.reply: Any = None

    def say(self, what: Push | Proof) -> None:
        for link, part in zip(self.up, self.slices.cut(what), strict=True):
            link.append(part)

    def hear(self, shard: int) -> None:
        told = self.down[shard].popleft()
        if shard:
            self.slices.heard(shard - 1, told)
        else:
            assert not isinstance(self.reply, Reply)
            self.reply = told
        if self.reply is None or self.slices.lacking(self.reply) is not None:
            return
        serials = [int(answer[-1]) for answer in (self.reply.answer, *self.certified()) if answer]
        found, self.reply = self.slices.whole(self.reply), None
        answers = [found.answer, *([found.certify[1]] if self.certified(found) else [])]
        for serial, answer in zip(serials, [each for each in answers if each], strict=True):
            assert torch.equal(answer[0], self.city.lead.answers[serial])
        if isinstance(found, News):
            self.loop.heard(found)
            return
        proof = self.loop.replied(found)
        if proof is not None:
            self.city.proofs[self.worker] = proof
            self.say(proof)

    def certified(self, told: Any = None) -> list[Any]:
        told = self.reply if told is None else told
        if isinstance(told, News) or told.certify is None:
            return []
        return [told.certify[1]]

    def compute(self) -> None:
        push = self.loop.compute()
        if push is not None:
            self.city.sent[self.worker, push.number] = push
            self.say(push)


class City:
    """A server of several shards, its workers, and all that is under way between them."""

    def __init__(self, config: Any, objectives: Any, servers: int, seed: int, eta: float) -> None:
        self.draws = random.Random(seed)
        self.config, self.objectives, self.servers = config, objectives, servers
        self.cut = Cut(dim=config.dim, servers=servers)
        w0 = np.zeros(config.dim) if config.traits.duals else objectives[0].initial()
        rules = [slice_rule(config, w0, servers, shard) for shard in range(servers)]
        whole = server_rule(config, w0)
        for rule in (*rules, whole):
            rule.eta *= eta
        self.kept: dict[int, list[Any]] = {}
        self.shards = [
            ShardLoop(rule, lambda step, state: self.kept[step].append(state)) for rule in rules[1:]
        ]
        self.lead = Watched(self, rules[0], servers - 1, whole)
        self.applied: list[tuple[int, int]] = []
        given = bound(config)
        self.loop = ServerLoop(
            self.lead,
            Bound(updates=given.updates, late=given.late),
            Ends(messages=90, certify_samples=12),
            config.broadcast,
            on_applied=lambda worker, number, _: self.applied.append((worker, number)),
        )
        self.logs: list[deque[list[Entry]]] = [deque() for _ in self.shards]
        self.acks: list[deque[Entry]] = [deque() for _ in self.shards]
        self.sent: dict[tuple[int, int], Push] = {}
        self.proofs: dict[int, Proof] = {}
        self.gone: dict[int, dict[int, Any]] = {}
        self.dead: dict[int, Resident] = {}
        self.residents = {k: Resident(self, k, {}) for k in range(len(objectives))}
        self.step = 0
        self.loop.expect(self.residents)
        for worker in self.residents:
            self.join(worker)

    def order(self, orders: Any) -> None:
        for order in orders:
            self.residents[order.worker].down[0].append(order.message)
        log, self.lead.log = self.lead.log, []
        if log:
            for link in self.logs:
                link.append(log)

    def join(self, worker: int) -> None:
        for shard in self.shards:
            shard.comes(worker)
        self.lead.joined(worker)
        self.order(self.loop.joined(worker))

    # ----------------------------------------------------------------- what can happen

    def ask(self, number: int) -> list[dict[str, float]]:
        """Let every shard come to the end of the log."""
        self.order([])
        found = []
        for index, shard in enumerate(self.shards):
            while self.logs[index]:
                self.follow(index)
            measured = dict(shard.measured)
            shard.measured.clear()
            found.append(measured[number])
        return found

    def follow(self, index: int) -> None:
        shard = self.shards[index]
        for told in shard.follow(self.logs[index].popleft()):
            resident = self.residents.get(told.worker)
            if resident is not None and (told.needed or self.draws.random() < 0.7):
                news = News(era=int(told.snapshot), version=told.serial, answer=told.tensors)
                resident.down[index + 1].append(news)
        self.acks[index].extend(shard.acks)
        shard.acks.clear()

    def reach(self, resident: Resident, shard: int) -> None:
        told = resident.up[shard].popleft()
        if shard:
            self.shards[shard - 1].heard(resident.worker, told)
            self.acks[shard - 1].extend(self.shards[shard - 1].acks)
            self.shards[shard - 1].acks.clear()
        else:
            self.lead.heard(resident.worker, told)
            self.take()

    def take(self) -> None:
        while (found := self.lead.whole()) is not None:
            worker, told = found
            if isinstance(told, Push):
                self.order(self.loop.arrived(worker, told))
            else:
                self.order(self.loop.proved(worker, told))

    def ack(self, index: int) -> None:
        self.lead.acked(index, self.acks[index].popleft())
        self.take()

    def die(self, worker: int) -> None:
        """What it has sent arrives in part: of its last message perhaps one slice."""
        resident = self.dead[worker] = self.residents[worker]
        for link in resident.up:
            for _ in range(self.draws.randint(0, len(link))):
                link.pop()
        for link in resident.down:
            link.clear()
        resident.loop.pieces_left = 0

    def notice(self, worker: int) -> None:
        resident = self.dead.pop(worker)
        self.gone[worker] = resident.saved
        for link in resident.up:
            link.clear()
        self.lead.lost(worker)
        self.order(self.loop.lost(worker, max(resident.saved, default=None)))

    def come_back(self, worker: int) -> None:
        self.residents[worker] = Resident(self, worker, self.gone.pop(worker))
        self.join(worker)

    def repeat(self) -> None:
        worker, number = self.draws.choice(self.applied)
        before = len(self.applied)
        assert self.loop.arrived(worker, self.sent[worker, number]) == []
        assert len(self.applied) == before

    def keep(self) -> None:
        self.step += 1
        self.loop.checkpoint(self.step)

    def save(self) -> None:
        """Every shard keeps its range; together they are what the whole rule keeps."""
        step = self.step
        self.kept[step] = [self.lead.save()]
        self.ask_for_all()
        first, *others = self.kept.pop(step)
        assert len(others) == len(self.shards)
        assert_same([first, *others], self.lead.one.save())

    def ask_for_all(self) -> None:
        self.order([])
        for index in range(len(self.shards)):
            while self.logs[index]:
                self.follow(index)

    # ----------------------------------------------------------------- a run

    def moves(self, deaths: bool) -> list[Any]:
        found: list[Any] = []
        for worker, each in self.residents.items():
            if worker in self.gone:
                continue
            found += [(self.reach, each, s) for s in range(self.servers) if each.up[s]]
            if worker in self.dead:
                continue
            found += [(each.hear, s) for s in self.ready(each)]
            if each.loop.pieces_left and not each.down[0]:
                found.append((each.compute,))
        for index in range(len(self.shards)):
            if self.logs[index]:
                found.append((self.follow, index))
            if self.acks[index]:
                found.append((self.ack, index))
        found += [(self.notice, worker) for worker in self.dead]
        found += [(self.come_back, worker) for worker in self.gone]
        chance = self.draws.random()
        if deaths and chance < 0.01:
            alive = [k for k in self.residents if k not in self.dead and k not in self.gone]
            found = [(self.die, self.draws.choice(alive))] if alive else found
        elif chance < 0.02 and not self.loop.saving and not self.dead and not self.gone:
            found = [(self.keep,)]
        elif chance < 0.05 and self.applied:
            found = [(self.repeat,)]
        return found

    def ready(self, resident: Resident) -> list[int]:
        first = [0] if resident.down[0] and not isinstance(resident.reply, Reply) else []
        return first + [s for s in range(1, self.servers) if resident.down[s]]

    def run(self, deaths: bool) -> None:
        for _ in range(200_000):
            if self.loop.state.final is not None:
                break
            moves = self.moves(deaths)
            assert moves, "nobody can go on"
            move, *arguments = self.draws.choice(moves)
            move(*arguments)
            if self.loop.told == self.step and self.step:
                self.save()
                self.step += 1
        assert self.loop.state.final is not None
        self.lead.over()
        self.ask_for_all()
        assert all(shard.over for shard in self.shards)


def assert_same(slices: list[Any], whole: Any) -> None:
    """The slices, one behind the other, are the whole, bit for bit."""
    if isinstance(whole, dict):
        assert all(each.keys() == whole.keys() for each in slices)
        for key, value in whole.items():
            if key not in ("best", "first"):
                assert_same([each[key] for each in slices], value)
    elif isinstance(whole, torch.Tensor):
        assert torch.equal(torch.cat(slices), whole)
    else:
        assert all(each == whole for each in slices)


METHODS = ["dis_dfsdca", "dis_dfsdca", "cocoa_plus", "asysgd", "asysvrg", "sgd_svrg"]


@RUNS
@given(
    method=st.sampled_from(METHODS),
    problem=st.sampled_from(["ridge", "logistic", "pca"]),
    workers=st.integers(1, 4),
    servers=st.integers(2, 4),
    broadcast=st.sampled_from([0, 2]),
    deaths=st.booleans(),
    eta=st.sampled_from([1.0, 1.0, 16.0]),
    seed=st.integers(0, 10**6),
)
def test_several_shards_are_one_server_to_the_bit(
    method, problem, workers, servers, broadcast, deaths, eta, seed
):
    options: dict[str, Any] = {"seed": seed % 1000}
    if problem == "pca":
        method = "dis_dfsdca"
        objectives: Any = pca_objectives(workers, n=40, d=5)
    else:
        objectives = linear_objectives(linear(n=40, logistic=problem == "logistic"), workers)
    if method == "dis_dfsdca":
        options |= {"local_steps": 2, "broadcast": broadcast}
    elif method != "cocoa_plus":
        options |= {"batch": 4, "inner": 5, "pretrain": 0.5}
    config = settings_for(method, objectives, **options)
    city = City(config, objectives, servers, seed, eta)
    city.run(deaths)
    assert city.loop.state.ended_by == "messages"
    assert len(set(city.applied)) == len(city.applied)
    rules = [city.lead.rule, *(shard.rule for shard in city.shards)]
    one = city.lead.one
    assert_same([rule.weights(rule.answer(-1))["w"] for rule in rules], torch.from_numpy(one._w))
    if config.traits.duals:
        for worker, share in one._shares.items():
            assert np.array_equal(np.concatenate([rule._shares[worker] for rule in rules]), share)
    final = [city.lead.weights(city.loop.state.final), *(shard.weights() for shard in city.shards)]
    assert_same([each["w"] for each in final], city.lead.snapshot[0])
    assert max(row["staleness_max"] for row in city.loop.state.rows) <= config.delta_updates


@given(st.integers(1, 40), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_slices_of_a_message_are_the_message(dim, servers, density, seed):
    draws = np.random.default_rng(seed)
    cut = Cut(dim=dim, servers=min(servers, dim))
    assert [lo for lo, _ in cut.ranges] == [0, *(hi for _, hi in cut.ranges[:-1])]
    where = np.flatnonzero(draws.random(dim) < density).astype(np.int32)
    draws.shuffle(where)
    values = draws.standard_normal(len(where))
    whole = np.zeros(dim)
    whole[where] = values
    found = np.zeros(dim)
    sparse = (torch.from_numpy(where), torch.from_numpy(values))
    for (lo, _), part in zip(cut.ranges, cut.message(sparse), strict=True):
        found[lo + as_vector(part[0])] += as_vector(part[1])
    assert np.array_equal(found, whole)
    dense = cut.message((torch.from_numpy(whole),))
    assert torch.equal(torch.cat([each[0] for each in dense]), torch.from_numpy(whole))
