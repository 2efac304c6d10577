"""Policy gradients on CartPole: steps, estimates and gradients one by one, then all together."""

from __future__ import annotations

import functools
import math

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from actors.server.ends import Ends
from actors.server.protocols import Task
from raylab.algorithms.server.parts import Phase
from raylab.algorithms.server.policy_gradient import PolicyServer, PolicySettings
from raylab.algorithms.server.policy_worker import PolicyWorker, advantages
from raylab.errors import ConfigError, NonFiniteLossError
from raylab.problems.actor_critic import ActorCritic
from raylab.problems.cartpole import Episodes, greedy_returns
from raylab.simulator import Simulated, Timing, run_rules

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def task(number: int) -> Task:
    return Task(phase=Phase(number=0, kind="play"), number=number, version=0)


def push_of(worker: PolicyWorker, number: int, w: torch.Tensor) -> torch.Tensor:
    worker.work(task(number), (w,), 0)
    return worker.message()[0]


# ------------------------------------------------------------------------------- the environments


def test_episodes_end_where_gymnasium_with_its_own_time_limit_ends_them():
    ours = Episodes(1, seed=3, worker=2)
    theirs = gymnasium.make("CartPole-v1")
    for episode in range(6):
        key = np.random.SeedSequence((3, 2, 0, episode), spawn_key=(0,)).generate_state(1)
        expected, _ = theirs.reset(seed=int(key[0]))
        for t in range(1, 501):
            np.testing.assert_array_equal(ours.observations[0], expected)
            # The last three balance the pole for all the steps that there are.
            lean = expected[2] + 0.3 * expected[3] + (0.05 * expected[0] + 0.1 * expected[1])
            action = int(lean > 0) if episode >= 3 else t % 2
            expected, _, terminated, truncated, _ = theirs.step(action)
            step = ours.step(0, action)
            np.testing.assert_array_equal(step.observation, expected)
            assert (step.terminated, step.truncated) == (terminated, truncated)
            if terminated or truncated:
                break
        assert ours.last[-1] == t
    assert ours.ended == 6
    assert max(ours.last) == 500
    assert min(ours.last) < 100


def test_episodes_go_on_where_they_were_saved():
    one = Episodes(3, seed=0, worker=0)
    for t in range(50):
        for index in range(3):
            one.step(index, (t + index) % 2)
    other = Episodes(3, seed=0, worker=0)
    other.restore(one.save())
    for t in range(200):
        for index in range(3):
            np.testing.assert_array_equal(one.observations, other.observations)
            one.step(index, t // 3 % 2)
            other.step(index, t // 3 % 2)
    assert one.save() == other.save()


def test_a_greedy_return_counts_the_first_episode_of_every_environment():
    always_left = greedy_returns(lambda o: np.zeros(len(o), dtype=np.int64), 40, seed=1)
    assert len(always_left) == 40
    assert all(7 <= each <= 11 for each in always_left)
    balanced = greedy_returns(
        lambda o: (o @ np.array([0.05, 0.1, 1.0, 0.3]) > 0).astype(np.int64), 5, seed=1
    )
    assert balanced == [500] * 5


# ------------------------------------------------------------------------------- the estimates


def test_advantages_are_the_sum_over_all_later_errors():
    draws = np.random.default_rng(0)
    rewards, values = draws.random(9), draws.random(10)
    deltas = rewards + 0.9 * values[1:] - values[:-1]
    expected = [
        sum((0.9 * 0.7) ** later * deltas[t + later] for later in range(9 - t)) for t in range(9)
    ]
    np.testing.assert_allclose(advantages(rewards, values, 0.9, 0.7), expected, rtol=1e-12)


def modules(network: ActorCritic, w: torch.Tensor, hidden: int) -> tuple[nn.Module, nn.Module]:
    """The same networks as torch writes them."""

    def chain(outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
            nn.Linear(hidden, outputs),
        )  # fmt: skip

    both = nn.ModuleList([chain(2), chain(1)])
    nn.utils.vector_to_parameters(w, both.parameters())
    return both[0], both[1]


def test_the_first_gradient_of_what_was_played_is_the_plain_actor_critics():
    settings = PolicySettings(seed=1, environments=3, horizon=20, hidden=8, reuse=2)
    network = ActorCritic(4, 2, 8)
    w = network.initial(5)
    worker = PolicyWorker(settings, 0)
    found = push_of(worker, 0, w)
    played = worker.save()["played"]
    assert worker.samples() == len(played["actions"]) > 20
    policy, value = modules(network, w, 8)
    chosen = torch.distributions.Categorical(logits=policy(played["observations"])).log_prob(
        played["actions"]
    )
    loss = -(chosen * played["advantages"]).mean()
    error = value(played["observations"])[:, 0] - played["returns"]
    loss = loss + settings.value * (error**2).mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for m in (policy, value) for p in m.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(played["log_probabilities"], chosen.detach())


def test_a_later_gradient_is_cut_off_where_the_policy_has_moved_too_far():
    settings = PolicySettings(environments=2, horizon=16, hidden=8, reuse=3, value=0.0, clip=0.2)
    network = ActorCritic(4, 2, 8)
    w = network.initial(0)
    worker = PolicyWorker(settings, 0)
    push_of(worker, 0, w)
    played = worker.save()["played"]
    moved = w + 0.3 * torch.randn(network.dim, generator=torch.Generator().manual_seed(0))
    found = push_of(worker, 1, moved)
    assert worker.samples() == 0
    rows = torch.arange(len(played["actions"]))
    leaf = moved.clone().requires_grad_()
    every = torch.log_softmax(network.policy(leaf, played["observations"]), dim=1)
    ratio = (every[rows, played["actions"]] - played["log_probabilities"]).exp()
    gain = played["advantages"]
    counts = ~(((gain > 0) & (ratio > 1.2)) | ((gain < 0) & (ratio < 0.8)))
    assert 0 < int(counts.sum()) < len(rows)
    (-(ratio * gain * counts).sum() / len(rows)).backward()
    torch.testing.assert_close(found, leaf.grad, rtol=1e-4, atol=1e-6)


def test_the_server_makes_adams_step_with_a_gradient_that_is_not_too_long():
    settings = PolicySettings(hidden=4, eta=0.01, max_norm=0.5)
    server = PolicyServer(settings)
    twin = nn.Parameter(server.answer(0)[0])
    adam = torch.optim.Adam([twin], lr=0.01, eps=1e-5)
    draws = torch.Generator().manual_seed(0)
    for scale in (1e-3, 5.0, 0.02):
        gradient = scale * torch.randn(twin.numel(), generator=draws)
        server.apply(0, (gradient.clone(),), 3)
        twin.grad = gradient
        nn.utils.clip_grad_norm_([twin], 0.5)
        adam.step()
    torch.testing.assert_close(server.answer(0)[0], twin.detach(), rtol=1e-5, atol=1e-7)
    again = PolicyServer(settings)
    again.restore(server.save())
    for each in (server, again):
        each.apply(0, (gradient,), 0)
    torch.testing.assert_close(server.answer(0)[0], again.answer(0)[0], rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_ends_the_run_and_says_whose_it_was():
    server = PolicyServer(PolicySettings(hidden=4))
    bad = torch.full_like(server.answer(0)[0], math.nan)
    with pytest.raises(NonFiniteLossError, match="of worker 2, 5 updates old"):
        server.apply(2, (bad,), 5)


@pytest.mark.parametrize(
    "wrong", [{"reuse": 0}, {"eta": 0.0}, {"discount": 1.5}, {"target": 501.0}]
)
def test_a_setting_out_of_its_range_is_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PolicySettings(**wrong)


def test_a_restored_worker_computes_what_the_lost_one_would_have():
    settings = PolicySettings(environments=3, horizon=16, reuse=2, hidden=8, seed=4)
    w = ActorCritic(4, 2, 8).initial(4)
    one = PolicyWorker(settings, 1)
    for number in range(3):
        push_of(one, number, w)
    other = PolicyWorker(settings, 1)
    other.restore(one.save())
    for number in range(3, 7):
        torch.testing.assert_close(push_of(one, number, w), push_of(other, number, w))
        assert one.samples() == other.samples()


def test_workers_play_different_episodes():
    settings = PolicySettings(environments=2, horizon=16, reuse=1, hidden=8, workers=2)
    w = ActorCritic(4, 2, 8).initial(0)
    one, other = (push_of(PolicyWorker(settings, k), 0, w) for k in range(2))
    assert not torch.equal(one, other)


# ------------------------------------------------------------------------------- all together


def train(settings: PolicySettings, ends: Ends) -> Simulated:
    timing = Timing(message_s=100.0, sample_s=1.0, latency_s=0.0, bytes_per_s=math.inf)
    worker = functools.partial(PolicyWorker, settings)
    return run_rules(PolicyServer(settings), worker, settings.workers, ends, timing=timing)


def test_two_workers_learn_to_balance_the_pole_with_stale_gradients():
    settings = PolicySettings(workers=2, seed=2)
    found = train(settings, Ends(samples=12_000))
    before, row = found.rows[0], found.rows[-1]
    assert before["greedy_return"] < 30
    assert found.ended_by == "epochs"
    assert row["staleness_max"] >= 2
    assert row["mean_return"] > 50
    assert row["greedy_return"] > 100
    assert row["shortfall"] == max(0.0, 475 - row["greedy_return"])


def test_a_run_ends_once_the_greedy_policy_reaches_the_target():
    settings = PolicySettings(workers=2, seed=2, target=100.0, evaluation=20)
    ends = Ends(samples=20_000, figure="shortfall", tolerance=1e-9, certify_samples=2_000)
    found = train(settings, ends)
    assert found.ended_by == "tolerance"
    assert found.rows[-1]["greedy_return"] >= 100
    assert [row["shortfall"] > 0 for row in found.rows[:-1]] == [True] * (len(found.rows) - 1)
