"""A test with the mean of all replicas; every worker takes a share of the batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raylab.algorithms.averaging.collective import Collective, summed
from raylab.algorithms.averaging.figures import WorkerFigures
from raylab.algorithms.averaging.worker import WorkerSettings, autocast, on_device
from raylab.algorithms.stage.loss_terms import loss_terms
from raylab.drivers.averaging.shards import Shards

__all__ = ["Evaluation"]

_SUMS = ("loss_sum", "weight", "samples", "correct", "counted")


class Evaluation:
    """Tests of one model.

    Args:
        model: whose weights the caller sets.
        loss_fn: (outputs, labels) -> mean loss over the samples.
        settings: of a local replica.
    """

    def __init__(
        self, model: nn.Module, loss_fn: Callable[..., Tensor], settings: WorkerSettings
    ) -> None:
        self._model = model
        self._loss_fn = loss_fn
        self._terms = loss_terms(loss_fn)
        self._settings = settings

    @torch.no_grad()
    def of(
        self, test: Shards, ranks: Sequence[int], seats: Sequence[Collective]
    ) -> dict[str, float]:
        """Return loss and accuracy over all samples.

        Args:
            test: the batches, the same at all workers.
            ranks: of the local replicas.
            seats: theirs.
        """
        self._model.eval()
        parts = []
        for rank in ranks:
            figures = WorkerFigures(self._terms)
            for x, y in test.share(rank, seats[0].size):
                with autocast(self._settings):
                    target = on_device(y, self._settings.device)
                    output = self._model(on_device(x, self._settings.device))
                    figures.tested(self._loss_fn(output, target).reshape(()), output, target)
            found = figures.take()
            parts.append([found[name] for name in _SUMS])
        device = self._settings.device
        flats = [torch.tensor(part, dtype=torch.float64, device=device) for part in parts]
        loss, weight, samples, correct, counted = summed(seats, flats).tolist()
        row = {"test_loss": loss / weight if weight else math.nan} if samples else {}
        if counted and correct == correct:
            row["test_accuracy"] = correct / counted
        return row
