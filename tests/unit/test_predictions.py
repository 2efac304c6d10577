"""Accuracy: the share of right predictions where a loss says what they are, else no figure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raylab.algorithms.averaging.figures import WorkerFigures
from raylab.algorithms.stage.figures import StageFigures
from raylab.algorithms.stage.loss_terms import loss_terms
from raylab.algorithms.stage.predictions import predictions
from tests.stages import last, normal

pytestmark = pytest.mark.unit


def counts(outputs: Tensor, labels: Tensor, loss_fn: Any) -> tuple[int, int] | None:
    found = predictions(outputs, labels, loss_terms(loss_fn))
    return None if found is None else (int(found.correct), int(found.counted))


def own(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels)


SCORES = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [3, 0, 0]])


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), F.nll_loss, own])
def test_classes_are_predicted_by_their_largest_score_and_ignored_labels_do_not_count(loss_fn):
    assert counts(SCORES, torch.tensor([0, 1, 0, 2]), loss_fn) == (2, 4)
    assert counts(SCORES, torch.tensor([0, -100, 0, -100]), loss_fn) == (1, 2)


def test_the_ignored_label_is_that_of_the_loss():
    loss_fn = nn.CrossEntropyLoss(ignore_index=0)
    assert counts(SCORES, torch.tensor([0, 1, 0, 2]), loss_fn) == (1, 2)


def test_every_place_of_an_image_or_sentence_is_a_prediction():
    tokens = SCORES.expand(2, 4, 3)
    labels = torch.tensor([[0, 1, 2, -100], [0, 0, 0, 0]])
    # Dimension 1 for torch's losses, the last one where a loss of one's own turns it there.
    assert counts(tokens.transpose(1, 2), labels, nn.CrossEntropyLoss()) == (5, 7)
    assert counts(tokens, labels, own) == (5, 7)
    assert counts(tokens.transpose(1, 2), labels, own) == (5, 7)
    # Where both could be, there is no telling.
    assert counts(torch.zeros(2, 4, 4), labels, own) is None


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_logit_is_on_the_side_of_its_label(shape: tuple[int, ...]):
    outputs = torch.tensor([-1.0, 0.2, 0.3, 0.9]).view(shape)
    labels = torch.tensor([0.0, 1, 0, 1]).view(shape)
    assert counts(outputs, labels, nn.BCEWithLogitsLoss()) == (3, 4)
    assert counts(outputs.abs(), labels, nn.BCELoss()) == (2, 4)


@pytest.mark.parametrize(
    ("outputs", "labels", "loss_fn"),
    [
        (torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]), own),
        (torch.zeros(4), torch.tensor([0, 1, 0, 1]), own),
        (torch.zeros(4, 3), torch.ones(4, 3), nn.BCEWithLogitsLoss()),
        (torch.zeros(4, 3), torch.ones(4, 3), nn.CrossEntropyLoss()),
        (torch.zeros(4, 1), torch.ones(4, 1), nn.MSELoss()),
        (torch.zeros(4, 3), torch.ones(4, dtype=torch.long), nn.MSELoss()),
    ],
    ids=["one score", "one number", "several labels", "soft labels", "values", "whole values"],
)
def test_there_is_no_accuracy_where_nothing_says_what_is_right(outputs, labels, loss_fn):
    assert counts(outputs, labels, loss_fn) is None


def test_a_stage_tells_no_accuracy_of_one_score_and_none_of_nothing():
    def loss_fn(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs.squeeze(1), labels.double())

    stage = last(nn.Linear(3, 1).double(), loss_fn)
    stage.evaluate((normal(4, 3),), (torch.tensor([0, 1, 1, 0]),))
    assert "test_accuracy" not in stage.report()
    stage = last(nn.Linear(3, 2).double(), nn.CrossEntropyLoss())
    stage.evaluate((normal(2, 3),), (torch.full((2,), -100),))
    row = stage.report()
    assert "test_accuracy" not in row
    assert row["test_loss"] != row["test_loss"]


def test_a_replica_counts_as_a_stage_does():
    figures = WorkerFigures(loss_terms(nn.CrossEntropyLoss()))
    y = torch.tensor([0, -100, 0, -100])
    figures.trained(F.cross_entropy(SCORES, y), SCORES, y)
    figures.tested(torch.tensor(float("nan")), SCORES, torch.full((4,), -100))
    found = figures.take()
    assert (found["correct"], found["counted"]) == (1, 2)
    assert found["loss_sum"] / found["weight"] == pytest.approx(float(F.cross_entropy(SCORES, y)))
    sums = WorkerFigures(loss_terms(nn.CrossEntropyLoss(reduction="sum")))
    y = torch.tensor([0, 1, 2, 0])
    sums.trained(F.cross_entropy(SCORES, y, reduction="sum"), SCORES, y)
    found = sums.take()
    assert found["loss_sum"] / found["weight"] == pytest.approx(float(F.cross_entropy(SCORES, y)))


def test_sums_of_a_version_without_weights_are_gone_on_with():
    figures = StageFigures()
    figures.restore({"train": {"samples": 8, "loss": 4.0, "correct": 6}})
    figures.train.add(1.0, 8, 8, 8.0, 8)
    row = figures.take()
    assert (row["loss"], row["accuracy"]) == (0.75, 0.875)
    replica = WorkerFigures()
    replica.restore({"loss_sum": 4.0, "samples": 8, "correct": 6.0, "blocked_s": 0.0})
    found = replica.take()
    assert (found["weight"], found["counted"]) == (8, 8)
