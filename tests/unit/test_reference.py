"""Reductions that check the serial reference of the pipeline methods against closed forms."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference.networks import batches, conv_bn64, mlp64
from tests.reference.pipeline import METHODS, Optimiser, Outcome, eq17, train

pytestmark = pytest.mark.unit

State = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]

SGD = Optimiser(kind="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4)
ADAM = Optimiser(kind="adam", lr=0.01, weight_decay=1e-3)
NETWORKS: dict[str, Callable[[int], nn.Sequential]] = {"mlp": mlp64, "conv": conv_bn64}
DELAYED = ["ddg", "fr", "adl"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same(actual: State, expected: State, rtol: float = 1e-12) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(
            actual[key], value, rtol=rtol, atol=rtol, msg=lambda m, key=key: f"{key}: {m}"
        )


def differs(a: State, b: State) -> bool:
    return any(not torch.allclose(a[key], b[key], rtol=1e-8, atol=1e-10) for key in a)


def torch_optimiser(model: nn.Module, optimiser: Optimiser) -> torch.optim.Optimizer:
    if optimiser.kind == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=optimiser.lr,
            momentum=optimiser.momentum,
            weight_decay=optimiser.weight_decay,
        )
    return torch.optim.Adam(
        model.parameters(),
        lr=optimiser.lr,
        betas=optimiser.betas,
        eps=optimiser.eps,
        weight_decay=optimiser.weight_decay,
    )


def plain_training(
    model: nn.Module,
    data: Sequence[Batch],
    optimiser: Optimiser,
    *,
    accumulate: int = 1,
    micro_batches: int = 1,
    lr_factor: Callable[[int], float] = lambda _: 1.0,
) -> tuple[nn.Module, list[float]]:
    """Train in the ordinary way with torch.optim, the batch cut into micro-batches if asked."""
    model = copy.deepcopy(model).train()
    rule = torch_optimiser(model, optimiser)
    schedule = torch.optim.lr_scheduler.LambdaLR(rule, lr_factor)
    losses = []
    for n, (x, y) in enumerate(data):
        losses.append(0.0)
        for x_part, y_part in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            loss = F.cross_entropy(model(x_part), y_part) * (len(x_part) / len(x))
            (loss / accumulate).backward()
            losses[-1] += loss.item()
        if (n + 1) % accumulate == 0 or n + 1 == len(data):
            rule.step()
            rule.zero_grad()
            schedule.step()
    return model, losses


def even_cuts(model: nn.Sequential, stages: int) -> list[int]:
    return [len(model) * k // stages for k in range(1, stages)]


def run(model: nn.Sequential, data: Sequence[Batch], optimiser: Optimiser = SGD, **kw) -> Outcome:
    cuts = kw.pop("cuts", None)
    stages = kw.pop("stages", 1)
    return train(
        model,
        cuts=even_cuts(model, stages) if cuts is None else cuts,
        epochs=kw.pop("epochs", [data]),
        loss_fn=F.cross_entropy,
        optimiser=optimiser,
        **kw,
    )


# --- reductions to back-propagation -------------------------------------------------------------


@pytest.mark.parametrize("optimiser", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize(
    ("method", "stages"), [("bp", 1), ("ddg", 1), ("fr", 1), ("adl", 1), ("bp", 4)]
)
def test_without_staleness_every_method_is_plain_training(method, stages, network, optimiser):
    model, data = NETWORKS[network](1), batches(network, 5, ragged=True, seed=1)
    before = copy.deepcopy(model.state_dict())
    outcome = run(model, data, optimiser, method=method, stages=stages, accumulate=2)
    expected, losses = plain_training(model, data, optimiser, accumulate=2)
    assert_same(outcome.state, expected.state_dict())
    assert outcome.losses == pytest.approx(losses, rel=1e-12)
    assert outcome.updates == [3] * stages
    assert outcome.staleness == [[[0, 0], [0, 0], [0]]] * stages
    assert_same(model.state_dict(), before, rtol=0.0)


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
@pytest.mark.parametrize("optimiser", [SGD, ADAM], ids=["sgd", "adam"])
def test_micro_batches_change_nothing_without_batch_normalisation(method, optimiser):
    model, data = mlp64(2), batches("mlp", 5, ragged=True, seed=2)
    outcome = run(model, data, optimiser, method=method, stages=3, accumulate=2)
    expected, losses = plain_training(model, data, optimiser, accumulate=2)
    assert_same(outcome.state, expected.state_dict(), rtol=1e-11)
    assert outcome.losses == pytest.approx(losses, rel=1e-12)
    assert outcome.staleness == [[[0, 0], [0, 0], [0]]] * 3


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
def test_micro_batches_have_their_own_batch_statistics(method):
    model, data = conv_bn64(3), batches("conv", 3, ragged=True, seed=3)
    outcome = run(model, data, method=method, stages=4, micro_batches=4)
    expected, _ = plain_training(model, data, SGD, micro_batches=4)
    trained = dict(expected.named_parameters())
    assert_same({name: outcome.state[name] for name in trained}, trained)
    assert differs(outcome.state, run(model, data, method=method, micro_batches=1).state)


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
def test_micro_batches_move_the_running_statistics_once_a_batch(method):
    model, data = conv_bn64(3), batches("conv", 3, ragged=True, seed=3)
    outcome = run(model, data, method=method, stages=4, micro_batches=4)
    assert outcome.state["0.1.num_batches_tracked"] == 3
    # The first batch's move by hand: momentum 0.1 from (0, 1) to the mean over four even parts.
    one = run(model, data[:1], method=method, micro_batches=4).state
    parts = model[0][0](data[0][0]).chunk(4)
    mean = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    var = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
    torch.testing.assert_close(one["0.1.running_mean"], 0.1 * mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(one["0.1.running_var"], 0.9 + 0.1 * var, rtol=1e-12, atol=1e-14)


def test_learning_rate_factor_follows_each_stages_updates():
    def factor(s: int) -> float:
        return 0.5**s

    model, data = mlp64(4), batches("mlp", 6, seed=4)
    expected, _ = plain_training(model, data, SGD, accumulate=2, lr_factor=factor)
    for method in ("bp", "gpipe"):
        outcome = run(model, data, method=method, stages=2, accumulate=2, lr_factor=factor)
        assert_same(outcome.state, expected.state_dict(), rtol=1e-11)


# --- the delayed gradient in one piece ----------------------------------------------------------


def global_history(
    model: nn.Sequential,
    data: Sequence[Batch],
    optimiser: Optimiser,
    cuts: Sequence[int],
    delays: Sequence[int],
    accumulate: int,
) -> tuple[list[State], list[int]]:
    """Unroll HUO (5.9) / ADL (21) with gradients of the uncut network.

    w_k^{s+1} = step(w_k^s, 1/M sum_n grad_k f_{x_b}(w^{floor(b/M)})), b = n - D_k, summed over
    M s <= n < M (s+1), where w^s is the *whole* network after s updates of each stage.
    """
    total = [len(data) + delay for delay in delays]
    updates = [math.ceil(count / accumulate) for count in total]
    bounds = [0, *cuts, len(model)]
    net = copy.deepcopy(model).train()
    stages = [net[i:j] for i, j in itertools.pairwise(bounds)]
    rules = [
        torch_optimiser(stage, optimiser) if list(stage.parameters()) else None for stage in stages
    ]
    history: list[State] = []
    gradients: list[State] = []
    for s in range(max(updates) + 1):
        history.append({name: p.detach().clone() for name, p in net.named_parameters()})
        for x, y in data[s * accumulate : (s + 1) * accumulate]:
            names, weights = zip(*net.named_parameters(), strict=True)
            found = torch.autograd.grad(F.cross_entropy(net(x), y), weights)
            gradients.append(dict(zip(names, found, strict=True)))
        for k, stage in enumerate(stages):
            if s >= updates[k] or rules[k] is None:
                continue
            for name, p in stage.named_parameters():  # a slice keeps the chain's names
                p.grad = torch.zeros_like(p)
                for n in range(s * accumulate, min((s + 1) * accumulate, total[k])):
                    if n >= delays[k]:
                        p.grad += gradients[n - delays[k]][name] / accumulate
            rules[k].step()
    return history, updates


@pytest.mark.parametrize("optimiser", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    ("method", "stages", "accumulate", "network"),
    [
        ("ddg", 4, 1, "conv"),
        ("ddg", 8, 1, "mlp"),
        ("ddg", 3, 3, "conv"),
        ("adl", 3, 1, "mlp"),
        ("adl", 4, 2, "conv"),
        ("adl", 9, 4, "conv"),
    ],
)
def test_delayed_gradient_is_that_of_the_whole_network_at_old_weights(
    method, stages, accumulate, network, optimiser
):
    model, data = NETWORKS[network](5), batches(network, 7, size=4, ragged=True, seed=5)
    cuts = even_cuts(model, stages)
    delays = [{"ddg": 1, "adl": 2}[method] * (stages - 1 - i) for i in range(stages)]
    history, updates = global_history(model, data, optimiser, cuts, delays, accumulate)
    outcome = run(
        model,
        data,
        optimiser,
        method=method,
        cuts=cuts,
        accumulate=accumulate,
        epochs=[data[:4], data[4:]],
    )
    assert outcome.updates == updates
    final = {key: outcome.state[key] for key in history[-1]}
    assert_same(final, history[-1], rtol=1e-11)
    for n, state in zip((4, 7), outcome.epoch_states, strict=True):
        at_n = {key: state[key] for key in history[0]}
        assert_same(at_n, history[n // accumulate], rtol=1e-11)


@pytest.mark.parametrize(
    ("method", "delay", "replay", "weight_version"),
    [
        ("bp", 0, False, "forward"),
        ("ddg", 1, False, "forward"),
        ("fr", 1, True, "forward"),
        ("adl", 2, False, "forward"),
        ("adl", 2, False, "current"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_methods_are_settings_of_one_family(method, delay, replay, weight_version, accumulate):
    # For ADL this compares two orders of events: skewed ticks, and a locked forward.
    model, data = conv_bn64(6), batches("conv", 5, size=4, ragged=True, seed=6)
    common = {
        "stages": 4,
        "accumulate": accumulate,
        "weight_version": weight_version,
        "epochs": [data[:2], data[2:]],
    }
    named = run(model, data, method=method, **common)
    family = run(model, data, method="family", link_delays=[delay] * 3, replay=replay, **common)
    assert_same(named.state, family.state, rtol=0.0)
    assert named.staleness == family.staleness
    assert named.losses == family.losses
    for a, b in zip(named.epoch_states, family.epoch_states, strict=True):
        assert_same(a, b, rtol=0.0)


def test_mixed_link_delays_add_up_from_above():
    model, data = conv_bn64(7), batches("conv", 8, seed=7)
    cuts, links, delays = [2, 4, 7], [2, 0, 1], [3, 1, 1, 0]
    history, updates = global_history(model, data, SGD, cuts, delays, 2)
    outcome = run(model, data, method="family", cuts=cuts, link_delays=links, accumulate=2)
    assert outcome.updates == updates == [6, 5, 5, 4]
    assert_same({key: outcome.state[key] for key in history[-1]}, history[-1], rtol=1e-11)


# --- hand-unrolled scalars ----------------------------------------------------------------------


def scalar_chain(*stages: Sequence[float]) -> tuple[nn.Sequential, list[int]]:
    """Return a chain of 1x1 linear maps, and the cuts that put each group into its own stage."""
    weights = [w for stage in stages for w in stage]
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights)).double()
    with torch.no_grad():
        for layer, w in zip(model, weights, strict=True):
            layer.weight.fill_(w)
    return model, list(itertools.accumulate(len(stage) for stage in stages[:-1]))


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().mean()


def scalar_run(model: nn.Sequential, cuts: list[int], xs, ys, lr: float, **kw) -> list[float]:
    column = [
        (torch.tensor([[x]], dtype=torch.float64), torch.tensor([[y]], dtype=torch.float64))
        for x, y in zip(xs, ys, strict=True)
    ]
    outcome = train(
        model,
        cuts=cuts,
        epochs=[column],
        loss_fn=half_square,
        optimiser=Optimiser(kind="sgd", lr=lr),
        **kw,
    )
    return [value.item() for value in outcome.state.values()]


@pytest.mark.parametrize(
    ("method", "weight_version"),
    [("ddg", "forward"), ("ddg", "current"), ("fr", "forward"), ("fr", "current")],
)
def test_two_stages_three_steps_by_hand(method, weight_version):
    # Stage 1 is h = b a x, stage 2 is o = c h, the loss (o - y)^2 / 2; D_1 = 1, D_2 = 0, M = 1.
    a, b, c = 0.9, -1.1, 0.7
    (x0, x1, x2), (y0, y1, y2), lr = (0.5, -1.3, 0.8), (1.0, 0.4, -0.6), 0.1

    def stage_1_gradient(error, x, old, now):
        (a_old, b_old), (a_now, b_now) = old, now
        if method == "fr":  # everything at the current weights
            return error * b_now * x, error * a_now * x
        if weight_version == "current":  # b from now, the activation a x from the forward
            return error * b_now * x, error * a_old * x
        return error * b_old * x, error * a_old * x

    # t = 0: stage 2 takes batch 0, stage 1 takes g = 0.
    h = b * a * x0
    e0 = (c * h - y0) * c  # at c^0, sent down for t = 1
    w0, c1 = (a, b), c - lr * (c * h - y0) * h
    # t = 1: forward of batch 1 at (w0, c1); stage 1 takes batch 0 at w0.
    w1 = w0
    h = w1[1] * w1[0] * x1
    e1 = (c1 * h - y1) * c1
    c2 = c1 - lr * (c1 * h - y1) * h
    ga, gb = stage_1_gradient(e0, x0, old=w0, now=w1)
    w2 = (w1[0] - lr * ga, w1[1] - lr * gb)
    # t = 2: forward of batch 2 at (w2, c2); stage 1 takes batch 1, whose forward was at w1.
    h = w2[1] * w2[0] * x2
    e2 = (c2 * h - y2) * c2
    c3 = c2 - lr * (c2 * h - y2) * h
    ga, gb = stage_1_gradient(e1, x1, old=w1, now=w2)
    w3 = (w2[0] - lr * ga, w2[1] - lr * gb)
    # t = 3, drain: stage 1 takes batch 2, whose forward was at w2.
    ga, gb = stage_1_gradient(e2, x2, old=w2, now=w3)
    w4 = (w3[0] - lr * ga, w3[1] - lr * gb)

    model, cuts = scalar_chain((a, b), (c,))
    found = scalar_run(
        model, cuts, (x0, x1, x2), (y0, y1, y2), lr, method=method, weight_version=weight_version
    )
    assert found == pytest.approx([*w4, c3], rel=1e-14)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_three_stages_of_features_replay_by_hand(accumulate):
    # HUO algorithm 11 with one weight per stage: o = c b a x. Stage 2 replays its kept input with
    # the current b, and the error gradient that it sends down is taken at that b too (6.7).
    weights = {"a": 0.9, "b": -1.1, "c": 0.7}
    xs, ys, lr = (0.5, -1.3, 0.8, 1.7), (1.0, 0.4, -0.6, 0.2), 0.1
    model, cuts = scalar_chain(*((w,) for w in weights.values()))
    found = scalar_run(model, cuts, xs, ys, lr, method="fr", accumulate=accumulate)

    indices = {"a": 6, "b": 5, "c": 4}  # N + D_k
    sums = dict.fromkeys(weights, 0.0)
    inputs_2, error_2, error_1 = {}, {}, {}  # of stage 2; what stages 2, 1 receive, by batch
    for t in range(6):
        a, b, c = weights.values()
        late_2, late_1 = {}, {}
        if t < 4:
            inputs_2[t] = a * xs[t]  # play
            h = b * inputs_2[t]
            residual = c * h - ys[t]
            sums["c"] += residual * h
            late_2[t] = residual * c
        if 0 <= t - 1 < 4:
            sums["b"] += error_2[t - 1] * inputs_2[t - 1]
            late_1[t - 1] = error_2[t - 1] * b
        if t - 2 >= 0:
            sums["a"] += error_1[t - 2] * xs[t - 2]
        error_2.update(late_2)
        error_1.update(late_1)
        for name, total in indices.items():
            if t < total and ((t + 1) % accumulate == 0 or t + 1 == total):
                weights[name] -= lr * sums[name] / accumulate
                sums[name] = 0.0
    assert found == pytest.approx(list(weights.values()), rel=1e-14)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_current_weights_are_what_a_kept_graph_reads_after_a_step_through_data(network):
    # K = 2, D_1 = 1, M = 1: a graph is kept for one tick while the weights move beneath it.
    model, data = NETWORKS[network](8), batches(network, 5, seed=8)
    net = copy.deepcopy(model).train()
    lower, upper = net[:5], net[5:]
    lr, waiting = 0.05, None
    for t in range(len(data) + 1):
        arrived = waiting
        if t < len(data):
            x, y = data[t]
            out = lower(x)
            h = out.detach().requires_grad_()
            weights = list(upper.parameters())
            *found, error = torch.autograd.grad(F.cross_entropy(upper(h), y), [*weights, h])
            for p, g in zip(weights, found, strict=True):
                p.data.add_(g, alpha=-lr)
            waiting = (out, error)
        if arrived is not None:
            weights = list(lower.parameters())
            found = torch.autograd.grad(arrived[0], weights, arrived[1])
            for p, g in zip(weights, found, strict=True):
                p.data.add_(g, alpha=-lr)
    plain = Optimiser(kind="sgd", lr=lr)
    found = run(model, data, plain, method="ddg", cuts=[5], weight_version="current")
    assert_same(found.state, net.state_dict(), rtol=1e-11)
    assert differs(found.state, run(model, data, plain, method="ddg", cuts=[5]).state)


# --- staleness, counts, start-up ----------------------------------------------------------------


@pytest.mark.parametrize("stages", [2, 3, 8])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
def test_adl_staleness_is_equation_17(stages, accumulate):
    model, data = mlp64(9), batches("mlp", 18, size=3, seed=9)
    outcome = run(model, data, method="adl", stages=stages, accumulate=accumulate)
    for k, windows in enumerate(outcome.staleness, start=1):
        delay = 2 * (stages - k)
        assert outcome.updates[k - 1] == len(windows) == math.ceil((18 + delay) / accumulate)
        assert sum(map(len, windows)) == 18
        for s, window in enumerate(windows):
            indices = range(s * accumulate, min((s + 1) * accumulate, 18 + delay))
            assert window == [
                eq17(stages, k, accumulate, s, n - s * accumulate) for n in indices if n >= delay
            ]


@pytest.mark.parametrize(("accumulate", "mean"), [(1, 14.0), (2, 7.0), (4, 3.5)])
def test_mean_staleness_of_the_first_of_eight_stages(accumulate, mean):
    model, data = mlp64(10), batches("mlp", 24, size=3, seed=10)
    outcome = run(model, data, method="adl", stages=8, accumulate=accumulate)
    steady = [w for w in outcome.staleness[0][14 // accumulate + 1 :] if len(w) == accumulate]
    assert steady
    for window in steady:
        assert sum(window) / accumulate == mean


@pytest.mark.parametrize("method", ["ddg", "fr"])
def test_staleness_of_ddg_and_fr_is_the_distance_to_the_last_stage(method):
    model, data = mlp64(11), batches("mlp", 6, size=3, seed=11)
    outcome = run(model, data, method=method, stages=4)
    for k, windows in enumerate(outcome.staleness, start=1):
        assert windows == [[]] * (4 - k) + [[4 - k]] * 6
    assert outcome.updates == [9, 8, 7, 6]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_updates_cover_batches_and_drain(method, accumulate):
    model, data = mlp64(12), batches("mlp", 7, size=3, seed=12)
    links = {"link_delays": [3, 0]} if method == "family" else {}
    outcome = run(model, data, method=method, stages=3, accumulate=accumulate, **links)
    one, two = [2, 1, 0], [4, 2, 0]
    delays = {"ddg": one, "fr": one, "adl": two, "dsp": two, "family": [3, 0, 0]}
    expected = [math.ceil((7 + d) / accumulate) for d in delays.get(method, [0, 0, 0])]
    assert outcome.updates == expected
    assert len(outcome.losses) == 7


def test_fewer_batches_than_stages_still_arrive_once():
    model, data = mlp64(13), batches("mlp", 2, size=3, seed=13)
    for method in DELAYED:
        outcome = run(model, data, method=method, stages=8)
        assert [sum(map(len, windows)) for windows in outcome.staleness] == [2] * 8
    no_decay = Optimiser(kind="sgd", lr=0.05)
    history, _ = global_history(
        model, data, no_decay, even_cuts(model, 8), [14 - 2 * i for i in range(8)], 1
    )
    assert_same(run(model, data, no_decay, method="adl", stages=8).state, history[-1], rtol=1e-11)


def test_start_up_steps_take_weight_decay_and_count_for_adam():
    model, data = mlp64(14), batches("mlp", 3, size=3, seed=14)
    decay = Optimiser(kind="sgd", lr=0.1, weight_decay=0.5)
    outcome = run(model, data, decay, method="ddg", stages=4, epochs=[data[:2], data[2:]])
    name = "0.0.weight"  # of stage 1, whose first three updates have g = 0
    expected = model.state_dict()[name] * (1 - 0.1 * 0.5) ** 2
    torch.testing.assert_close(outcome.epoch_states[0][name], expected, rtol=1e-14, atol=0.0)

    adam = Optimiser(kind="adam", lr=0.1)
    one = data[:1]
    state = run(model, one, adam, method="ddg", stages=2).state
    gradient = torch.autograd.grad(
        F.cross_entropy(model(one[0][0]), one[0][1]), model[0][0].weight
    )[0]
    # The only gradient of stage 1 is its second step: bias corrections have t = 2, not t = 1.
    m_hat = 0.1 * gradient / (1 - 0.9**2)
    v_hat = 0.001 * gradient**2 / (1 - 0.999**2)
    expected = model.state_dict()[name] - 0.1 * m_hat / (v_hat.sqrt() + 1e-8)
    torch.testing.assert_close(state[name], expected, rtol=1e-12, atol=0.0)


# --- buffers and states -------------------------------------------------------------------------


@pytest.mark.parametrize("method", DELAYED)
def test_running_statistics_move_once_per_batch(method):
    model, data = conv_bn64(15), batches("conv", 6, ragged=True, seed=15)
    outcome = run(
        model,
        data,
        method=method,
        stages=4,
        accumulate=2,
        epochs=[data[:1], data[1:4], data[4:]],
    )
    tracked = [key for key in outcome.state if key.endswith("num_batches_tracked")]
    assert len(tracked) == 7
    assert all(outcome.state[key] == 6 for key in tracked)
    delay_of_block = [3, 3, 2, 2, 1, 1, 0, 0, 0]
    for n, state in zip((1, 4, 6), outcome.epoch_states, strict=True):
        for key in tracked:
            late = delay_of_block[int(key[0])] if method == "fr" else 0
            assert state[key] == max(0, n - late)


def test_replay_moves_running_statistics_by_features_of_current_weights():
    # K = 2, stage 1 has D = 1: batch n is replayed one update after it was played.
    model, data = conv_bn64(16), batches("conv", 4, seed=16)
    outcome = run(model, data, method="fr", cuts=[5], epochs=[[batch] for batch in data])
    norm = copy.deepcopy(model[0][1]).train()
    convolution = copy.deepcopy(model[0][0])
    for n, (x, _) in enumerate(data[:3]):
        convolution.weight.data.copy_(outcome.epoch_states[n]["0.0.weight"])  # w^{n+1}
        norm(convolution(x))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(
                outcome.epoch_states[n + 1][f"0.1.{name}"], getattr(norm, name), rtol=1e-12, atol=0
            )


def test_epochs_do_not_drain_the_pipeline():
    model, data = conv_bn64(17), batches("conv", 4, size=4, seed=17)
    for method in METHODS:
        links = {"link_delays": [2, 1]} if method == "family" else {}
        whole = run(model, data, method=method, stages=3, **links)
        parts = run(model, data, method=method, stages=3, epochs=[data[:1], [], data[1:]], **links)
        assert_same(parts.state, whole.state, rtol=0.0)
        assert parts.losses == whole.losses
        assert len(parts.epoch_states) == 3
        assert_same(parts.epoch_states[0], parts.epoch_states[1], rtol=0.0)
        assert_same(parts.epoch_states[2], whole.epoch_states[0], rtol=0.0)
        if method in ("bp", "gpipe", "1f1b"):
            assert_same(whole.epoch_states[0], whole.state, rtol=0.0)
        else:
            assert differs(whole.epoch_states[0], whole.state)


def test_epoch_state_ends_before_the_last_partial_window():
    model, data = mlp64(18), batches("mlp", 5, size=3, seed=18)
    for method in ("bp", "gpipe"):
        outcome = run(model, data, method=method, stages=2, accumulate=2)
        even = run(model, data[:4], method=method, stages=2, accumulate=2)
        assert_same(outcome.epoch_states[0], even.state, rtol=0.0)
        assert differs(outcome.epoch_states[0], outcome.state)


def test_frozen_parameters_stay_and_in_place_blocks_work():
    model = nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.ReLU(inplace=True),
        nn.Linear(5, 4),
    ).double()  # fmt: skip
    model[2].weight.requires_grad_(False)
    data = batches("mlp", 4, seed=19)
    saved = [x.clone() for x, _ in data]
    for method in (*DELAYED, "bp", "gpipe"):
        outcome = run(model, data, method=method, cuts=[1, 3])
        assert torch.equal(outcome.state["2.weight"], model[2].weight)
    assert all(torch.equal(x, y) for (x, _), y in zip(data, saved, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "nothing"},
        {"method": "bp", "cuts": [3, 3]},
        {"method": "bp", "cuts": [9]},
        {"method": "family"},
        {"method": "family", "link_delays": [1, 1]},
        {"method": "ddg", "link_delays": [1]},
        {"method": "ddg", "replay": True},
        {"method": "ddg", "weight_version": "old"},
        {"method": "ddg", "accumulate": 0},
        {"method": "ddg", "epochs": []},
    ],
)
def test_settings_that_do_not_belong_together_are_refused(wrong):
    with pytest.raises(ValueError, match="but got"):
        run(mlp64(), batches("mlp", 2), **{"stages": 2, **wrong})
