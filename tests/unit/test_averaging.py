"""The averaging rule in one process against eq. 7 written down on its own."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR

from raylab.algorithms.averaging import AVERAGING_METHODS, AveragingNumbers
from raylab.algorithms.averaging.averages import average_of
from raylab.algorithms.averaging.collective import SerialCollectives
from raylab.algorithms.averaging.flat import FlatTensors
from raylab.algorithms.averaging.worker import AveragingWorker, WorkerSettings
from raylab.errors import ConfigError, NonFiniteLossError
from raylab.optimizers import make_optimizer
from tests.reference.averaging import eq_7, minibatch
from tests.reference.networks import batches, conv_bn64, mlp64

pytestmark = pytest.mark.unit


def steps_of(kind, count, workers, seed=0):
    """Return `count` steps of W batches."""
    flat = iter(batches(kind, count * workers, size=4, seed=seed))
    return [list(itertools.islice(flat, workers)) for _ in range(count)]


def replicas(model, workers, numbers, *, optimizer, schedule=None, **average):
    seats = SerialCollectives(workers).seats
    return [
        AveragingWorker(
            copy.deepcopy(model),
            WorkerSettings(rule=numbers, worker=j),
            optimizer=optimizer,
            schedule=schedule,
            loss_fn=F.cross_entropy,
            average=functools.partial(average_of, seat, averages=numbers.averages, **average),
        )
        for j, seat in enumerate(seats)
    ]


def train(workers, steps):
    for step in steps:
        for worker, (x, y) in zip(workers, step, strict=True):
            worker.begin(x, y)
        for worker in workers:
            worker.end()
    for worker in workers:
        worker.drop()
    return workers


def close(found, expected):
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("workers", "tau", "delay", "xi"),
    [(1, 3, 1, 0.5), (2, 4, 1, 0.25), (3, 4, 3, 0.0), (4, 2, 1, 0.7), (3, 1, 0, 0.3), (2, 5, 2, 0)],
)
def test_any_numbers_equal_eq_7_with_momentum_and_batch_normalisation(workers, tau, delay, xi):
    model, steps = conv_bn64(3), steps_of("conv", 13, workers)
    factor = lambda k: 1 / (1 + k)  # noqa: E731
    found = train(
        replicas(
            model,
            workers,
            AveragingNumbers(averages="weights", tau=tau, delay=delay, xi=xi),
            optimizer=functools.partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
            schedule=lambda optimizer: LambdaLR(optimizer, factor),
        ),
        steps,
    )
    weights, buffers = eq_7(
        model,
        steps,
        tau=tau,
        delay=delay,
        xi=xi,
        lr=lambda k: 0.1 * factor(k),
        momentum=0.9,
        weight_decay=1e-2,
    )
    for worker, x, b in zip(found, weights, buffers, strict=True):
        close(worker.model.named_parameters(), x)
        close(worker.model.named_buffers(), b)


def test_tau_1_without_delay_and_own_share_is_mini_batch_sgd():
    model, steps = conv_bn64(1), steps_of("conv", 6, 3)
    expected = minibatch(model, steps, lr=lambda k: 0.1)
    dasgd = AVERAGING_METHODS["dasgd"].numbers(tau=1, delay=0, xi=0.0)
    for numbers in (AVERAGING_METHODS["minibatch_sgd"].numbers(), dasgd):
        for worker in train(
            replicas(model, 3, numbers, optimizer=functools.partial(SGD, lr=0.1)), steps
        ):
            close(worker.model.named_parameters(), expected)


def test_dasgd_without_delay_and_own_share_is_local_sgd():
    model, steps = conv_bn64(2), steps_of("conv", 9, 2)
    adam = functools.partial(Adam, lr=0.01)
    runs = [
        train(replicas(model, 2, numbers, optimizer=adam), steps)
        for numbers in (
            AVERAGING_METHODS["dasgd"].numbers(tau=3, delay=0, xi=0.0),
            AVERAGING_METHODS["local_sgd"].numbers(tau=3),
        )
    ]
    for here, there in zip(*runs, strict=True):
        for a, b in zip(here.model.parameters(), there.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_methods_have_the_papers_numbers():
    dasgd = AVERAGING_METHODS["dasgd"].numbers()
    assert (dasgd.tau, dasgd.delay, dasgd.xi) == (4, 1, 0.25)
    assert AVERAGING_METHODS["minibatch_sgd"].numbers().averages == "gradients"


@pytest.mark.parametrize(
    ("method", "numbers", "message"),
    [
        ("dasgd", {"tau": 2, "delay": 2}, r"0 <= delay < tau must hold.*delay=2 with tau=2"),
        ("dasgd", {"tau": 0}, r"tau >= 1 must hold"),
        ("dasgd", {"delay": -1}, r"delay >= 0 must hold"),
        ("dasgd", {"xi": 1.0}, r"0 <= xi < 1 must hold"),
        ("local_sgd", {"delay": 1}, r"local_sgd has delay=0, but got delay=1: leave it out"),
        ("minibatch_sgd", {"tau": 4}, r"minibatch_sgd has tau=1"),
    ],
)
def test_numbers_out_of_range_are_named(method, numbers, message):
    with pytest.raises(ConfigError, match=message):
        AVERAGING_METHODS[method].numbers(**numbers)


@pytest.mark.parametrize("averages", ["weights", "gradients"])
@pytest.mark.parametrize(
    ("options", "lost"), [({"dtype": "bfloat16"}, 2**-5), ({"top_k": 0.3}, 1e-12)]
)
def test_what_is_not_sent_is_not_lost(averages, options, lost):
    """Over all replicas the sum of what was asked for is that of what came, and of what is kept.

    But for the rounding of a sum in bfloat16: at most 2^-9 of it, twice, in each of five.
    """
    torch.manual_seed(0)
    seats = SerialCollectives(3).seats
    first = torch.randn(40, dtype=torch.float64)
    means = [average_of(seat, first, averages=averages, **options) for seat in seats]
    asked, came = torch.zeros(40).double(), torch.zeros(40).double()
    for _ in range(5):
        flats = [torch.randn(40, dtype=torch.float64) for _ in means]
        total = sum(flats)
        under_way = [mean.start(flat) for mean, flat in zip(means, flats, strict=True)]
        found = [each.wait() for each in under_way]
        if averages == "weights":
            torch.testing.assert_close(sum(found), total, rtol=0, atol=lost)
            kept = [mean.state()["kept"] for mean in means]
            assert all(torch.equal(kept[0], each) for each in kept)
            assert any(not torch.equal(found[0], each) for each in found)
        else:
            asked, came = asked + total, came + 3 * found[0]
            assert all(torch.equal(found[0], each) for each in found)
    if averages == "gradients":
        rest = sum(mean.state()["kept"] for mean in means)
        torch.testing.assert_close(asked, came + rest, rtol=0, atol=5 * lost)


def test_fewer_bytes_are_sent_and_counted():
    def sent(**options):
        mean = average_of(SerialCollectives(1).seats[0], torch.zeros(100), **options)
        mean.start(torch.ones(100)).wait()
        return mean.sent_bytes

    weights = {"averages": "weights"}
    assert sent(**weights) == 400
    assert sent(**weights, dtype="bfloat16") == 200
    assert sent(**weights, top_k=0.05) == 5 * (4 + 4)
    assert sent(**weights, top_k=0.05, dtype="bfloat16") == 5 * (4 + 2)


def test_all_entries_sent_is_the_plain_average():
    model, steps = mlp64(1), steps_of("mlp", 11, 3)
    numbers = AveragingNumbers(averages="weights", tau=4, delay=2, xi=0.25)
    sgd = functools.partial(SGD, lr=0.1, momentum=0.9)
    plain = train(replicas(model, 3, numbers, optimizer=sgd), steps)
    whole = train(replicas(model, 3, numbers, optimizer=sgd, top_k=1.0), steps)
    for here, there in zip(plain, whole, strict=True):
        close(here.model.named_parameters(), there.model.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "0 < average_top_k <= 1"),
        ({"top_k": 1.5}, "0 < average_top_k <= 1"),
        ({"dtype": "int8"}, "average_dtype must be"),
    ],
)
def test_compressions_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        average_of(SerialCollectives(1).seats[0], torch.zeros(2), averages="weights", **options)


def test_a_replica_goes_on_from_its_state_bit_for_bit():
    model, steps = conv_bn64(4), steps_of("conv", 12, 2)
    numbers = AveragingNumbers(averages="weights", tau=3, delay=1, xi=0.25)
    make = functools.partial(
        replicas,
        model,
        2,
        numbers,
        optimizer=functools.partial(Adam, lr=0.01),
        schedule=lambda optimizer: LambdaLR(optimizer, lambda k: 0.9**k),
        dtype="bfloat16",
    )
    whole = train(make(), steps)
    half, later = train(make(), steps[:7]), make()
    for before, after in zip(half, later, strict=True):
        after.restore(before.state())
    for here, there in zip(whole, train(later, steps[7:]), strict=True):
        state = there.model.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in here.model.state_dict().items())


def test_a_replica_with_an_average_in_flight_is_not_saved():
    numbers = AveragingNumbers(averages="weights", tau=2, delay=1, xi=0.0)
    (worker,) = replicas(mlp64(), 1, numbers, optimizer=functools.partial(SGD, lr=0.1))
    for step in steps_of("mlp", 2, 1):
        worker.begin(*step[0])
        worker.end()
    with pytest.raises(RuntimeError, match="between two averages"):
        worker.state()


def test_draws_depend_on_seed_worker_and_step_alone():
    model = nn.Sequential(nn.Dropout(0.5), mlp64(blocks=2)).double()
    steps = steps_of("mlp", 5, 2)
    numbers = AVERAGING_METHODS["local_sgd"].numbers(tau=2)
    sgd = functools.partial(SGD, lr=0.1)
    first = train(replicas(model, 2, numbers, optimizer=sgd), steps)
    torch.manual_seed(77)
    again = train(replicas(model, 2, numbers, optimizer=sgd), steps)
    for here, there in zip(first, again, strict=True):
        assert torch.equal(here.weights.read(), there.weights.read())


def test_a_loss_that_is_not_finite_names_worker_and_step():
    numbers = AVERAGING_METHODS["minibatch_sgd"].numbers()
    workers = replicas(mlp64(blocks=2), 1, numbers, optimizer=functools.partial(SGD, lr=0.1))
    ((x, y),) = steps_of("mlp", 1, 1)[0]
    workers[0].begin(x * float("nan"), y)
    with pytest.raises(NonFiniteLossError, match="step 1 of worker 0"):
        workers[0].end()


def test_a_gradient_that_a_batch_does_not_make_counts_as_zero():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()

        def forward(self, x):
            return self.used(x)

    numbers = AVERAGING_METHODS["minibatch_sgd"].numbers()
    workers = replicas(Half(), 2, numbers, optimizer=functools.partial(SGD, lr=0.1))
    before = workers[0].model.unused.weight.clone()
    train(workers, steps_of("mlp", 2, 2))
    assert torch.equal(workers[0].model.unused.weight, before)


def test_tensors_of_several_shapes_are_read_and_written_as_one():
    tensors = [torch.arange(6.0).view(2, 3).t(), torch.tensor(7.0), torch.zeros(0)]
    flat = FlatTensors(tensors)
    read = flat.read()
    assert read.tolist() == [0, 3, 1, 4, 2, 5, 7]
    flat.blend(torch.ones(7), 0.5)
    assert flat.read().tolist() == [(v + 1) / 2 for v in read.tolist()]
    flat.write(read)
    assert tensors[0].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert FlatTensors([]).read().numel() == FlatTensors([]).numel == 0


def test_a_sum_that_is_waited_for_too_early_says_so():
    seats = SerialCollectives(2).seats
    under_way = seats[0].sum(torch.ones(1))
    with pytest.raises(RuntimeError, match="1 of 2 replicas"):
        under_way.wait()


def test_layer_wise_rates_are_those_of_all_workers_samples_where_gradients_are_averaged():
    """Two workers with half a batch each do what one worker does with the whole."""
    model = mlp64(5, blocks=3)
    steps = steps_of("mlp", 4, 2)
    whole = [[tuple(torch.cat(each) for each in zip(*step, strict=True))] for step in steps]
    numbers = AVERAGING_METHODS["minibatch_sgd"].numbers()
    clars = make_optimizer("clars", 0.1, momentum=0.9)
    halves = train(replicas(model, 2, numbers, optimizer=clars), steps)
    (one,) = train(replicas(model, 1, numbers, optimizer=clars), whole)
    for each in halves:
        torch.testing.assert_close(each.weights.read(), one.weights.read(), rtol=1e-6, atol=1e-9)
    assert not torch.equal(one.weights.read(), FlatTensors(model.parameters()).read())


@pytest.mark.parametrize("name", ["lars", "clars", "nag"])
def test_layer_wise_optimisers_run_under_averaged_weights(name):
    numbers = AVERAGING_METHODS["dasgd"].numbers()
    optimizer = make_optimizer(name, 0.1, momentum=0.9)
    workers = train(
        replicas(mlp64(5, blocks=3), 2, numbers, optimizer=optimizer), steps_of("mlp", 9, 2)
    )
    assert all(bool(worker.weights.read().isfinite().all()) for worker in workers)
