"""Micro-batches under losses that are no plain mean: the gradient of the batch, or an error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.units import Unit
from actors.wires.frames import decode, encode
from actors.wires.messages import Kind, Message
from raylab import ModelError, PipelineTrainer
from raylab.algorithms.stage.loss_terms import loss_terms
from raylab.drivers.pipeline.micro_batches import check_micro_batches
from tests.helpers import run_pipeline
from tests.reference.pipeline import Optimiser
from tests.stages import fixed, normal, seeded

pytestmark = pytest.mark.unit

CLASSES = 3
HEAVY = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
Batches = list[tuple[Tensor, Tensor]]


def batches(*ignored: int, size: int = 10, like: Callable[[Tensor], Tensor] | None = None):
    made: Batches = []
    for n in range(4):
        y = torch.randint(CLASSES, (size,), generator=seeded(n))
        y[list(ignored)] = -100
        made.append((normal(size, 4, seed=n), y if like is None else like(y)))
    return made


def trained(method: str, loss_fn: Any, given: Batches, **more: Any) -> Any:
    model = fixed(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    return run_pipeline(
        model,
        method=method,
        cuts=[2],
        epochs=[given] * 2,
        optimiser=more.pop("optimiser", Optimiser(kind="sgd", lr=0.1, momentum=0.9)),
        loss_fn=loss_fn,
        **more,
    )


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, CLASSES).double()


LOSSES: dict[str, tuple[Any, Batches]] = {
    "class weights": (nn.CrossEntropyLoss(weight=HEAVY), batches()),
    "class weights bound": (functools.partial(F.cross_entropy, weight=HEAVY), batches()),
    "ignored labels": (F.cross_entropy, batches(0, 4, 5, 9)),
    "a part of ignored labels only": (nn.CrossEntropyLoss(), batches(0, 1, 2)),
    "another ignored label": (nn.CrossEntropyLoss(ignore_index=2), batches()),
    "smoothed, weighted, ignored": (
        nn.CrossEntropyLoss(weight=HEAVY, label_smoothing=0.2),
        batches(0, 1, 7),
    ),
    "class probabilities": (nn.CrossEntropyLoss(weight=HEAVY), batches(like=one_hot)),
    "a weighted sum": (nn.CrossEntropyLoss(weight=HEAVY, reduction="sum"), batches(0, 1, 2)),
    "a bound sum": (functools.partial(F.cross_entropy, reduction="sum"), batches()),
    "labels of several classes": (
        nn.BCEWithLogitsLoss(weight=HEAVY, pos_weight=HEAVY),
        batches(like=one_hot),
    ),
    "values": (nn.MSELoss(), batches(like=one_hot)),
    "a mean of one's own": (lambda o, y: F.cross_entropy(o, y), batches()),
}


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_give_the_gradient_and_the_loss_of_their_batch(name: str, method: str):
    loss_fn, given = LOSSES[name]
    expected = trained("bp", loss_fn, given)
    found = trained(method, loss_fn, given, micro_batches=4)
    torch.testing.assert_close(
        dict(found.model.named_parameters()),
        dict(expected.model.named_parameters()),
        rtol=1e-10,
        atol=1e-12,
    )
    for one, other in zip(*map(told, (found, expected)), strict=True):
        assert one == pytest.approx(other, rel=1e-10)


def told(run: Any) -> list[dict[str, float]]:
    rows = [row for row in run.rows if "loss" in row]
    assert len(rows) == 2
    return [{name: row[name] for name in ("loss", "accuracy") if name in row} for row in rows]


@pytest.mark.parametrize(
    "more",
    [
        {"clip_norm": 0.05},
        {"accumulate": 2},
        {"optimiser": Optimiser(kind="clars", lr=1.0, momentum=0.9, trust=0.01)},
    ],
    ids=["clipped", "accumulated", "clars"],
)
def test_weighed_micro_batches_are_clipped_accumulated_and_measured_as_their_batch(more: Any):
    loss_fn, given = nn.CrossEntropyLoss(weight=HEAVY), batches(0, 1, 7)
    expected = trained("bp", loss_fn, given, **more)
    found = trained("gpipe", loss_fn, given, micro_batches=4, **more)
    torch.testing.assert_close(
        dict(found.model.named_parameters()),
        dict(expected.model.named_parameters()),
        rtol=1e-9,
        atol=1e-11,
    )


def ignoring_zero(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, ignore_index=0)


class Weighted(nn.CrossEntropyLoss):
    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, weight=HEAVY.to(outputs.dtype))


def contrast(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(labels)))


def summed(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="sum")


@pytest.mark.parametrize("loss_fn", [ignoring_zero, Weighted(), contrast, summed])
def test_a_loss_whose_micro_batches_do_not_add_up_is_refused_before_any_actor(loss_fn: Any):
    given = [(x.float(), y) for x, y in batches()]
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, CLASSES))
    trainer = PipelineTrainer(model, loss_fn, method="gpipe", stages=2)
    with pytest.raises(ModelError, match=r"add up to their batch.*reduction='sum'.*bp, ddg"):
        trainer.plan(given, measure=False)
    PipelineTrainer(model, loss_fn, method="ddg", stages=2).plan(given, measure=False)


def test_a_target_that_is_broadcast_is_refused_though_the_loss_is_known():
    outputs, labels = torch.zeros(8, 1), torch.arange(8.0)
    with pytest.warns(UserWarning, match="broadcast"), pytest.raises(ModelError, match="add up"):
        check_micro_batches(nn.MSELoss(), [outputs], [labels], 4)
    check_micro_batches(nn.MSELoss(), [outputs], [labels.unsqueeze(1)], 4)


def test_a_loss_of_time_first_outputs_is_found_to_be_a_mean():
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(0, 1).flatten(0, 1), labels.flatten())

    check_micro_batches(loss, [torch.zeros(5, 8, 3)], [torch.ones(8, 5, dtype=torch.long)], 4)
    check_micro_batches(loss, [torch.zeros(8, 8, 3)], [torch.ones(8, 8, dtype=torch.long)], 4)


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
def test_labels_that_a_later_batch_ignores_are_told_with_their_batch(method: str):
    given = [(x, y.clamp(min=1)) for x, y in batches()]
    given[2][1][0] = 0
    with pytest.raises(ModelError, match=r"but of batch 2 the loss is"):
        trained(method, ignoring_zero, given, micro_batches=4)


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), lambda o, y: F.cross_entropy(o, y)])
def test_outputs_of_half_precision_are_looked_at_in_full(loss_fn: Any):
    outputs = [torch.zeros(8, CLASSES, dtype=torch.bfloat16)]
    check_micro_batches(loss_fn, outputs, [torch.arange(8) % CLASSES], 4)


def test_a_module_without_a_forward_of_its_class_is_another_loss():
    class Compiled(nn.Module):
        forward = None

        def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(outputs, labels)

    assert not loss_terms(Compiled()).known


def test_a_subclass_with_a_forward_of_its_own_and_a_hooked_loss_are_not_taken_for_torchs():
    hooked = nn.CrossEntropyLoss()
    hooked.register_forward_hook(lambda *_: None)
    assert not loss_terms(Weighted()).known
    assert not loss_terms(hooked).known
    assert not loss_terms(lambda o, y: F.cross_entropy(o, y)).known
    assert not loss_terms(functools.partial(F.cross_entropy, weight=None, reduce=False)).known
    assert loss_terms(nn.CrossEntropyLoss(ignore_index=7)).ignore_index == 7
    assert loss_terms(functools.partial(F.nll_loss, reduction="sum")).sums


def test_the_share_of_a_loss_travels_with_its_micro_batch():
    sent = Message.of(Unit(3, 1, 4, 0.25, 0.125), (torch.arange(3.0),))
    received = decode(encode(0, sent))[1]
    assert received.unit == Unit(3, 1, 4, 0.25, 0.125)
    whole = decode(encode(0, Message(Kind.BATCH, 3, (torch.arange(3.0),))))[1]
    assert whole.unit == Unit(3)


@pytest.mark.parametrize("method", ["bp", "gpipe"])
def test_the_test_loss_over_ragged_batches_is_that_of_all_samples_at_once(method: str):
    loss_fn = nn.CrossEntropyLoss(weight=HEAVY)
    whole = batches(0, 1, 2, 3, 6)
    test = [(x[a:b], y[a:b]) for x, y in whole for a, b in ((0, 3), (3, 10))]
    run = trained(method, loss_fn, batches(), test=test)
    outputs = run.model(torch.cat([x for x, _ in test])).detach()
    labels = torch.cat([y for _, y in test])
    counted = labels != -100
    row = run.rows[-1] if "test_loss" in run.rows[-1] else run.rows[-2]
    assert row["test_loss"] == pytest.approx(float(loss_fn(outputs, labels)), rel=1e-10)
    expected = (outputs.argmax(1) == labels)[counted].double().mean()
    assert row["test_accuracy"] == pytest.approx(float(expected))
