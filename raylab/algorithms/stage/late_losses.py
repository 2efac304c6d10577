"""Losses that stay on the GPU until somebody asks for them: a number on the host is a wait.

On the CPU each is looked at as it comes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raylab.errors import NonFiniteLossError

__all__ = ["LateLosses"]

_EVERY = 16
"""Batches on a GPU between two looks."""


@dataclass(frozen=True, slots=True)
class _Late:
    batch: int
    loss: Tensor
    terms: int
    samples: int
    correct: Tensor | None
    beside: tuple[Tensor, ...]


class LateLosses:
    """The losses of the last few batches, with their counts of correct predictions.

    Args:
        device: where they are.
        add: takes (loss, samples, correct predictions, *numbers beside them) of each, in order.
    """

    def __init__(self, device: torch.device, add: Callable[..., None]) -> None:
        self.every = 1 if device.type == "cpu" else _EVERY
        self._add = add
        self._late: list[_Late] = []

    def came(
        self,
        batch: int,
        loss: Tensor,
        terms: int,
        samples: int,
        correct: Tensor | None,
        *beside: Tensor,
    ) -> None:
        """Keep the loss of a batch, and look at all that are kept once they are a few.

        Args:
            batch: its index n.
            loss: (), a sum of `terms` losses or, with 1, their mean.
            terms: see `loss`.
            samples: that the mean is over.
            correct: (), how many of them are predicted; None: that is no question here.
            beside: further numbers, (), which go to `add`.

        Raises:
            NonFiniteLossError: one is NaN or infinite.
        """
        self._late.append(_Late(batch, loss, terms, samples, correct, beside))
        if len(self._late) >= self.every:
            self.fetch()

    def fetch(self) -> None:
        """Look at all that are kept, with one wait.

        Raises:
            NonFiniteLossError: one is NaN or infinite.
        """
        late, self._late = self._late, []
        if not late:
            return
        losses = _numbers([each.loss for each in late])
        correct = iter(_numbers([each.correct for each in late if each.correct is not None]))
        beside = iter(_numbers([number for each in late for number in each.beside]))
        for each, loss in zip(late, losses, strict=True):
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss must be finite, but batch {each.batch} gave {loss}: lower the "
                    "learning rate, warm up, accumulate more batches, or clip the gradients"
                )
            self._add(
                loss / each.terms,
                each.samples,
                None if each.correct is None else next(correct),
                *itertools.islice(beside, len(each.beside)),
            )


def _numbers(tensors: list[Tensor]) -> list[Any]:
    """Return numbers on the host, with one wait for all."""
    if not tensors or tensors[0].device.type == "cpu":
        return [t.item() for t in tensors]
    kinds = {t.dtype for t in tensors}
    alike = tensors if len(kinds) == 1 else [t.double() for t in tensors]
    found: list[Any] = torch.stack(alike).tolist()
    return found
