"""Predictions that are right: counted only where a loss says what outputs and labels mean.

    classes         (N, C, d1, ...) with labels (N, d1, ...): the largest score is at the label
    two classes     logits or probabilities with labels of their shape and one output a sample:
                    the output is on the label's side of 0, or of 1/2
    unknown losses  scores of classes in dimension 1, or in the last as language models have them,
                    where the shapes leave no doubt

Labels that the loss ignores are left out, and for unknown losses negative ones: no class is called
so. Of values, of several labels a sample, and of soft labels there is no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raylab.algorithms.stage.loss_terms import LossTerms

__all__ = ["Predictions", "predictions"]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Counts on the device, ().

    Args:
        correct: predictions that are right.
        counted: labels that could be predicted.
    """

    correct: Tensor
    counted: Tensor


def predictions(outputs: Tensor, labels: Tensor, terms: LossTerms) -> Predictions | None:
    """Return how many labels are predicted, of how many; None where that is no question.

    Args:
        outputs: of the network.
        labels: of the same samples.
        terms: of the loss.
    """
    if terms.reads in ("logits", "probabilities"):
        return _of_two(outputs, labels, 0.0 if terms.reads == "logits" else 0.5)
    if labels.is_floating_point() or labels.is_complex() or terms.reads == "values":
        return None
    classes = _dimension_of_classes(outputs, labels, known=terms.known)
    if classes is None:
        return None
    right = outputs.argmax(dim=classes) == labels
    if terms.known:
        counted = labels != terms.ignore_index if terms.ignore_index is not None else None
    else:
        counted = labels >= 0
    if counted is None:
        return _all_counted(right)
    return Predictions((right & counted).sum(), counted.sum())


def _of_two(outputs: Tensor, labels: Tensor, border: float) -> Predictions | None:
    """Return the share on the right side; two classes need one output a sample."""
    if outputs.shape != labels.shape or outputs.numel() != outputs.shape[0]:
        return None
    right = (outputs > border) == (labels > 0.5)
    return _all_counted(right)


def _all_counted(right: Tensor) -> Predictions:
    return Predictions(right.sum(), torch.full((), right.numel(), device=right.device))


def _dimension_of_classes(outputs: Tensor, labels: Tensor, *, known: bool) -> int | None:
    """Return the dimension of `outputs` that the labels have not; None in doubt."""
    if outputs.ndim != labels.ndim + 1 or not labels.ndim:
        return None
    # torch's own losses have their classes in dimension 1, and one score is no choice.
    dimensions = (1,) if known else (1, outputs.ndim - 1)
    fitting = {d for d in dimensions if outputs.shape[:d] + outputs.shape[d + 1 :] == labels.shape}
    found = fitting.pop() if len(fitting) == 1 else None
    return found if found is not None and outputs.shape[found] > 1 else None
