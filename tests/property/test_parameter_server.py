"""Random parameter servers: whatever comes when, staleness is bounded and nothing counts twice."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.server.ends import Ends
from actors.server.loop import ServerLoop
from actors.server.messages import News, Order, Push, Reply
from actors.server.staleness import Bound
from raylab.algorithms.server.rule_factory import server_rule, worker_rule
from raylab.algorithms.server.settings import ServerSettings
from raylab.algorithms.server.stragglers import parse
from raylab.simulator import Event, Timing, simulate
from tests.server_problems import linear, linear_objectives, pca_objectives, settings_for
from tests.unit.test_server_loop import FakeRule, Phase

pytestmark = pytest.mark.property

CASES = settings(max_examples=60, deadline=None, derandomize=True)
RUNS = settings(max_examples=25, deadline=None, derandomize=True)


class Crowd:
    """A loop whose workers push, repeat themselves, die and come back as a random number says."""

    def __init__(self, workers, bound, phases, seed, deaths):
        self.draws = random.Random(seed)
        self.deaths = deaths
        self.applied: list[tuple[int, int, int]] = []
        self.rule = FakeRule(*phases)
        self.loop = ServerLoop(
            self.rule, bound, Ends(), 3, on_applied=lambda *what: self.applied.append(what)
        )
        self.tasks: dict[int, Push] = {}
        self.sent: list[tuple[int, Push]] = []
        self.verdicts: dict[int, list[str]] = {worker: [] for worker in range(workers)}
        self.gone: set[int] = set()
        self.loop.expect(range(workers))
        for worker in range(workers):
            self.hear(self.loop.joined(worker))

    def hear(self, orders: list[Order]) -> None:
        for order in orders:
            message = order.message
            if isinstance(message, News):
                assert order.worker in self.tasks
                continue
            assert isinstance(message, Reply)
            assert order.worker not in self.tasks, "a reply came while a message was computed"
            self.verdicts[order.worker].append(message.verdict)
            assert message.task is not None
            self.tasks[order.worker] = Push(
                era=message.era,
                phase=message.task.phase.number,
                number=message.task.number,
                tensors=(),
                samples=1,
            )

    def step(self) -> bool:
        chance = self.draws.random()
        if self.sent and chance < 0.15:
            worker, push = self.draws.choice(self.sent)
            before = len(self.applied)
            assert self.loop.arrived(worker, push) == []
            assert len(self.applied) == before
        elif self.deaths and chance < 0.25 and len(self.gone) < len(self.verdicts):
            worker = self.draws.choice(sorted(set(self.verdicts) - self.gone))
            self.gone.add(worker)
            self.tasks.pop(worker, None)
            self.hear(self.loop.lost(worker))
        elif self.gone and chance < 0.45:
            worker = self.draws.choice(sorted(self.gone))
            self.gone.remove(worker)
            self.hear(self.loop.joined(worker))
        elif self.tasks:
            worker = self.draws.choice(sorted(self.tasks))
            push = self.tasks.pop(worker)
            self.sent.append((worker, push))
            self.hear(self.loop.arrived(worker, push))
        else:
            return False
        return True


@CASES
@given(
    st.integers(1, 6), st.integers(0, 4), st.sampled_from(["wait", "refresh"]),
    st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_staleness_is_bounded_and_every_message_counts_once_or_never(
    workers, slack, late, deaths, seed
):
    updates = workers - 1 + slack if late == "wait" else slack
    crowd = Crowd(workers, Bound(updates=updates, late=late), [Phase()], seed, deaths)
    for _ in range(150):
        # Not all can wait: somebody computes, or is on the way back.
        assert crowd.step() or crowd.gone
    assert max((staleness for _, _, staleness in crowd.applied), default=0) <= updates
    told = [(worker, number) for worker, number, _ in crowd.applied]
    assert len(set(told)) == len(told)
    for worker, verdicts in crowd.verdicts.items():
        commits = verdicts.count("commit")
        count = sum(each == worker for each, _ in told)
        assert commits == count
        if late == "wait":
            assert "discard" not in verdicts


@CASES
@given(st.integers(1, 5), st.integers(1, 7), st.booleans(), st.integers(0, 10**6))
def test_phases_have_their_messages_and_rounds_have_everybody(workers, inner, deaths, seed):
    phases = []
    for number in range(0, 200, 2):
        phases.append(Phase(number=number, kind="full", gather=True, messages=1))
        phases.append(Phase(number=number + 1, kind="inner", messages=inner))
    bound = Bound(updates=2 * workers, late="refresh")
    crowd = Crowd(workers, bound, phases, seed, deaths)
    for _ in range(150):
        assert crowd.step() or crowd.gone
    calls = [c for c in crowd.rule.calls if c[0] in ("apply", "close")]
    number = 0
    while ("close",) in calls:
        end = calls.index(("close",))
        if number % 2 == 0:
            assert [worker for _, worker, _ in calls[:end]] == list(range(workers))
        else:
            assert end == inner
        calls, number = calls[end + 1 :], number + 1


@RUNS
@given(
    workers=st.integers(1, 5),
    method=st.sampled_from(["dis_dfsdca", "dis_dfsdca", "cocoa_plus"]),
    problem=st.sampled_from(["ridge", "logistic", "pca"]),
    sampling=st.sampled_from(["uniform", "importance", "adaptive"]),
    broadcast=st.sampled_from([0, 2]),
    straggler=st.sampled_from(["none", "paper", "heavy", "slow", "late:worker=0,seconds=0.1"]),
    events=st.lists(
        st.tuples(
            st.floats(0.0, 0.4),
            st.sampled_from(["death", "death", "checkpoint", "checkpoint", "repeat"]),
            st.integers(0, 4),
        ),
        max_size=8,
    ),
    dies=st.integers(0, 30),
    long_step=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_relation_holds_at_every_certificate_whatever_happens(
    workers, method, problem, sampling, broadcast, straggler, events, dies, long_step, seed
):
    if problem == "pca":
        method = "dis_dfsdca"
        objectives = pca_objectives(workers, n=40, d=4)
    else:
        objectives = linear_objectives(linear(n=40, logistic=problem == "logistic"), workers)
    options = {"seed": seed, "local_steps": 2}
    if method == "dis_dfsdca":
        options |= {"sampling": sampling, "broadcast": broadcast}
    config: ServerSettings = settings_for(method, objectives, **options)
    rule = server_rule(config, np.zeros(config.dim))
    if long_step and method == "dis_dfsdca":
        # A step that is halved a few times on the way.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raylab.algorithms.server.base_rules.chosen_eta", lambda _: 16 * rule.eta)
            found = _run(config, objectives, straggler, dies, events, workers)
    else:
        found = _run(config, objectives, straggler, dies, events, workers)
    assert found.ended_by == "messages"
    good = [row for row in found.rows if "rewound" not in row]
    assert max(row["relation"] for row in good) < 1e-12
    assert max(row["staleness_max"] for row in found.rows) <= config.delta_updates
    keys = [(each.worker, each.number) for each in found.trace]
    assert len(set(keys)) == len(keys)


def _run(config, objectives, straggler, dies, events, workers):
    return simulate(
        config,
        objectives,
        straggler=f"{straggler}+dies:worker=0,message={dies}",
        timing=Timing(sample_s=1e-3, latency_s=1e-3, detect_s=5e-3, restart_s=0.01),
        events=[
            Event(time_s=time_s, kind=kind, worker=worker % workers)
            for time_s, kind, worker in events
        ],
        ends=Ends(messages=120, certify_samples=20),
    )


@RUNS
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
def test_non_uniform_samples_are_distinct_and_on_average_weigh_what_uniform_ones_do(
    rows, count, seed
):
    count = min(count, rows)
    problem = linear(n=rows, seed=seed)
    (objective,) = objectives = linear_objectives(problem, 1)
    config = settings_for(
        "dis_dfsdca", objectives, sampling="importance", local_steps=count, seed=seed
    )
    sampler = worker_rule(config, objective, 0)._sampler
    weight = np.zeros(rows)
    for number in range(300):
        drawn, factors, looked_at = sampler.draw(number, np.zeros(config.dim), np.zeros(rows))
        assert looked_at == 0
        assert len(set(drawn.tolist())) == len(drawn) == count
        factors = np.ones(len(drawn)) if factors is None else factors
        assert factors.max() <= 2.0 + 1e-9
        weight[drawn] += factors / 300
    assert weight.sum() == pytest.approx(count, rel=0.25)


@CASES
@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 9), st.floats(1e-6, 1.0))
def test_delays_depend_on_their_key_alone_and_grow_with_the_work(worker, message, seed, compute_s):
    for text in ("paper", "heavy", "slow:worker=3", "paper+heavy"):
        straggler = parse(text, seed)
        delay = straggler.delay_s(worker, message, compute_s)
        assert delay >= 0
        assert straggler.delay_s(worker, message, compute_s) == delay
        assert straggler.delay_s(worker, message, 2 * compute_s) == pytest.approx(2 * delay)
    assert parse("paper", seed).delay_s(worker, message, compute_s) <= 10 * compute_s
