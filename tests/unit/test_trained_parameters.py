"""Parameters that nothing would train, and optimisers that take some of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from actors.units import Unit
from raylab import AveragingTrainer, PipelineTrainer
from raylab.algorithms.averaging import AVERAGING_METHODS
from raylab.algorithms.averaging.averages import average_of
from raylab.algorithms.averaging.collective import SerialCollectives
from raylab.algorithms.averaging.worker import AveragingWorker, WorkerSettings
from raylab.drivers.optimizer_check import untrained, untrained_note
from raylab.errors import ConfigError, ModelError
from tests.stages import assert_close, fixed, last, make, normal

pytestmark = pytest.mark.unit

BATCHES = [(normal(8, 4, seed=n), torch.arange(8) % 3) for n in range(4)]


def model() -> nn.Sequential:
    return fixed(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def matrices(parameters: Any) -> SGD:
    return SGD([p for p in parameters if p.ndim == 2], lr=0.1)


def pipeline(loss_fn: Any = F.cross_entropy, **options: Any) -> Callable[[], Any]:
    trainer = PipelineTrainer(model(), loss_fn, stages=[2], **options)
    return lambda: trainer.plan(BATCHES, measure=False)


def averaging(loss_fn: Any = F.cross_entropy, **options: Any) -> Callable[[], Any]:
    trainer = AveragingTrainer(model(), loss_fn, **options)
    return lambda: trainer.course(BATCHES, None, epochs=1, evaluate_every=1, report_every=0)


BOTH = pytest.mark.parametrize("trainer", [pipeline, averaging])


# ----------------------------------------------------------------- losses


class Temperature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores * self.log.exp(), labels)


class Holder:
    def __init__(self) -> None:
        self.inner = Temperature()

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        return self.inner(scores, labels)


def _closure() -> Callable[..., Tensor]:
    inner = Temperature()
    return lambda scores, labels: inner(scores, labels)


SCALE = torch.ones((), dtype=torch.float64, requires_grad=True)


def _of_the_module(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores * SCALE, labels)


LOSSES = [
    Temperature(),
    Holder(),
    Holder().__call__,
    functools.partial(Temperature()),
    _closure(),
    _of_the_module,
]


@BOTH
@pytest.mark.parametrize("loss_fn", LOSSES)
def test_a_loss_with_weights_to_train_is_refused_before_any_actor_starts(trainer, loss_fn):
    with pytest.raises(ModelError, match=r"loss_fn must have no .* of (its|the) .*requires_grad_"):
        trainer(loss_fn)()


@BOTH
def test_a_loss_with_still_weights_is_taken(trainer):
    trainer(Temperature().requires_grad_(False))()


def test_a_stage_refuses_a_loss_with_weights_to_train_as_well():
    with pytest.raises(ModelError, match="loss_fn must have no parameters of its own"):
        last(model(), Temperature())


# ----------------------------------------------------------------- optimisers of others


def foreign() -> Callable[[Any], SGD]:
    own = model()
    return lambda _: SGD([{"params": own[0].parameters(), "lr": 0.1}], lr=0.2)


def also_foreign() -> Callable[[Any], SGD]:
    own = model()
    return lambda parameters: SGD([*parameters, *own.parameters()], lr=0.2)


@BOTH
@pytest.mark.parametrize("optimizer", [foreign(), also_foreign()])
def test_an_optimiser_of_other_parameters_is_refused_before_any_actor_starts(trainer, optimizer):
    with pytest.raises(ConfigError, match=r"are others, which no actor reads: make it of"):
        trainer(optimizer=optimizer)()


@BOTH
def test_an_optimiser_without_parameters_is_refused_before_any_actor_starts(trainer):
    def of_volumes(parameters: Any) -> SGD:
        return SGD([p for p in parameters if p.ndim == 5], lr=0.1)

    with pytest.raises(ConfigError, match="empty parameter list"):
        trainer(optimizer=of_volumes)()
    with pytest.raises(ConfigError, match="SGD holds none of"):
        trainer(optimizer=lambda _: SGD([{"params": []}], lr=0.1))()


@pytest.mark.parametrize("optimizer", [foreign(), also_foreign()])
def test_a_stage_and_a_worker_refuse_an_optimiser_of_other_parameters(optimizer):
    with pytest.raises(ConfigError, match="are others, which no actor reads"):
        make(model(), optimizer=optimizer)
    with pytest.raises(ConfigError, match="are others, which no actor reads"):
        worker(optimizer)


@BOTH
def test_an_optimiser_of_some_parameters_is_taken(trainer):
    trainer(optimizer=matrices)()


def test_parameters_that_an_optimiser_leaves_are_told_in_one_line():
    left = untrained(matrices, model(), "a worker")
    (note,) = untrained_note(left)
    assert note == ("the optimiser leaves 8 weights as they are, in 2 parameters (0.bias, 2.bias)")
    frozen = model().requires_grad_(False)
    frozen[2].requires_grad_(True)
    assert untrained_note(untrained(functools.partial(SGD, lr=0.1), frozen, "a worker")) == []


# ----------------------------------------------------------------- clipping some of them


def worker(optimizer: Any, method: str = "local_sgd", **settings: Any) -> AveragingWorker:
    """A worker that has nobody to average with."""
    numbers = AVERAGING_METHODS[method].numbers()
    (seat,) = SerialCollectives(1).seats
    return AveragingWorker(
        model(),
        WorkerSettings(rule=numbers, **settings),
        optimizer=optimizer,
        schedule=None,
        loss_fn=F.cross_entropy,
        average=functools.partial(average_of, seat, averages=numbers.averages),
    )


def by_hand() -> dict[str, Tensor]:
    own = model()
    taken = [p for p in own.parameters() if p.ndim == 2]
    for x, y in BATCHES * 3:
        own.zero_grad()
        F.cross_entropy(own(x), y).backward()
        nn.utils.clip_grad_norm_(taken, 0.1)
        with torch.no_grad():
            for p in taken:
                p -= 0.1 * p.grad
    return own.state_dict()


def test_the_norm_of_a_stage_is_over_what_its_optimiser_holds_and_of_one_window():
    stage = make(
        copy.deepcopy(model()),
        optimizer=matrices,
        clip_norm=0.1,
        loss_fn=F.cross_entropy,
        stage=0,
        stages=1,
        delay=0,
    )
    for n, (x, y) in enumerate(BATCHES * 3):
        stage.forward(Unit(n), (x,), (y,))
        stage.backward(Unit(n), ())
        assert stage.window.trained[1].grad is None
        stage.update()
    assert_close(stage.state(), by_hand())


@pytest.mark.parametrize("method", ["local_sgd", "minibatch_sgd"])
def test_the_norm_of_a_worker_is_over_what_its_optimiser_holds_and_of_one_step(method):
    alone = worker(matrices, method, clip_norm=0.1)
    for x, y in BATCHES * 3:
        alone.begin(x, y)
        alone.end()
    assert_close(alone.model.state_dict(), by_hand())


# ----------------------------------------------------------------- updates of a zero gradient


class DividesByTheGradient(SGD):
    def step(self, closure: Any = None) -> None:
        norm = sum(float(p.grad.norm()) for g in self.param_groups for p in g["params"])
        for group in self.param_groups:
            group["lr"] = 1.0 / norm
        super().step()


class Normalises(SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = p.grad / p.grad.norm()
        super().step()


FRAGILE = [
    (DividesByTheGradient, "ZeroDivisionError: float division by zero"),
    (Normalises, "no longer finite"),
]


@pytest.mark.parametrize(("kind", "found"), FRAGILE)
@pytest.mark.parametrize("method", ["ddg", "adl", "fr", "dsp"])
def test_an_optimiser_that_bears_no_zero_gradient_is_refused_by_late_methods(kind, found, method):
    optimizer = functools.partial(kind, lr=0.1)
    with pytest.raises(ConfigError, match=rf"{kind.__name__} does not \(.*{found}\).*sgd.*1f1b"):
        pipeline(optimizer=optimizer, method=method)()


@pytest.mark.parametrize("method", ["bp", "gpipe", "1f1b", "dni", "dgl"])
def test_methods_without_empty_windows_take_it(method):
    pipeline(optimizer=functools.partial(Normalises, lr=0.1), method=method)()


@pytest.mark.parametrize(("kind", "found"), FRAGILE)
def test_a_stage_tells_of_an_update_of_zero_that_fails(kind, found):
    stage = make(model(), optimizer=functools.partial(kind, lr=0.1))
    stage.forward(Unit(0), BATCHES[0][:1], ())
    with pytest.raises(ConfigError, match=rf"{kind.__name__} does not .*{found}"):
        stage.update()
