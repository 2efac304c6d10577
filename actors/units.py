"""What travels: tensors over a cut or between server and worker, and the piece of work they are of.

A *unit* is the piece of work that travels through a pipeline: one batch, or one micro-batch of
a batch. Stages are numbered from 0 at the input to K-1 at the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Tensors", "Unit"]

Tensors = tuple[Tensor | None, ...]
"""What crosses a cut: one tensor or several; None stands for "no gradient for this one"."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One batch, or one micro-batch of it.

    Args:
        batch: index n of the batch, counted from 0 over all epochs.
        part: index of the micro-batch in the batch.
        parts: micro-batches that the batch has.
        share: samples of this unit as a share of the batch's, in (0, 1].
        loss_share: weight of its loss in the batch's; for a plain mean that is `share`.
    """

    batch: int
    part: int = 0
    parts: int = 1
    share: float = 1.0
    loss_share: float = 1.0
