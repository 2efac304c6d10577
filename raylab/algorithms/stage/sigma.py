"""The sufficient-direction constant of HUO, measured while training.

Assumption 6.4.1 asks of the direction g^t that is applied at the weights w^t

    <grad f(w^t), E g^t>  >=  sigma |grad f(w^t)|^2                (6.10)

Stage k applies at index t the gradient of batch t - D_k, made of old weights, old features or old
error gradients. One batch stands for the expectation, the same on both sides: stage k's part of
(6.10) is taken with f the loss of that very batch,

            sum_k < [grad f_{x(t-D_k)}(w^t)]_k , g_k^t >
    sigma = --------------------------------------------
              sum_k | [grad f_{x(t-D_k)}(w^t)]_k |^2

so that what remains is what lateness does to the direction, and not the noise of sampling: sigma
is 1 where nothing is late, and two different batches would give less than that even there. The
gradients at w^t are exact: before index t every batch that some stage is about to apply is sent
through all stages once more, each at its own index t, in training mode and with the same draws,
and back through all of them without delay. It moves no weight and no running statistic. With M > 1
g is one of the M gradients that the update takes the mean of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SufficientDirection"]


class SufficientDirection:
    """One stage's sums of (6.10)."""

    def __init__(self) -> None:
        self._batch = -1
        self._fresh: list[Tensor | None] = []

    def expect(self, batch: int, fresh: Sequence[Tensor | None]) -> None:
        """Keep the gradient of `batch` at the weights of now, to compare it with what comes late.

        Args:
            batch: its index.
            fresh: one gradient a weight, None where there is none.
        """
        self._batch = batch
        self._fresh = list(fresh)

    def compare(self, batch: int, applied: Sequence[Tensor | None]) -> tuple[float, float] | None:
        """Return <fresh, applied> and |fresh|^2 if `batch` is the one that is expected."""
        if batch != self._batch:
            return None
        fresh, self._fresh, self._batch = self._fresh, [], -1
        product = sum(
            float(torch.sum(f.double() * a.double()))
            for f, a in zip(fresh, applied, strict=True)
            if f is not None and a is not None
        )
        return product, sum(float(f.double().square().sum()) for f in fresh if f is not None)
