"""Whether the losses of micro-batches add up to that of their batch, as their gradients have to.

    loss(outputs, labels)  =  sum over the parts p of share_p loss(outputs_p, labels_p)

with share_p = n_p / n for a mean over samples and 1 for a sum over them. It holds of a mean over
all samples, not of one over the labels that are not ignored, nor of losses that compare samples
with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raylab.errors import ModelError

__all__ = ["WAY_OUT", "PartLosses", "samples_dimension"]

WAY_OUT = (
    "give torch's own module, such as nn.CrossEntropyLoss(weight=..., ignore_index=...), whose "
    "terms are known, or a sum over the samples with reduction='sum'; or take micro_batches=1, or "
    "a method without micro-batches (bp, ddg, fr, adl, dsp)"
)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class PartLosses:
    """Compares the losses of a batch's parts with that of the batch, on their device.

    Args:
        compute: (outputs, labels) -> loss, ().
    """

    def __init__(self, compute: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]) -> None:
        self._compute = compute
        self._parts: list[tuple[list[Tensor], list[Tensor]]] = []
        self._sum: Tensor | float = 0.0
        self._apart: list[tuple[int, Tensor, Tensor]] = []

    def came(
        self,
        batch: int,
        outputs: Sequence[Tensor],
        labels: Sequence[Tensor],
        loss: Tensor,
        *,
        share: float,
        last: bool,
    ) -> None:
        """Take in one part; after the batch's last one the two sides are compared.

        Args:
            batch: its index.
            outputs: of the part.
            labels: of the part.
            loss: of the part, ().
            share: of the part.
            last: whether it is the batch's last.
        """
        self._parts.append(([t.detach() for t in outputs], list(labels)))
        self._sum = self._sum + share * loss.detach()
        if not last:
            return
        parts, self._parts = self._parts, []
        total, self._sum = torch.as_tensor(self._sum), 0.0
        whole = _joined(parts)
        devices = [loss.device] if loss.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            self._apart.append((batch, total, self._compute(*whole).detach()))

    def check(self) -> None:
        """Look at the comparisons since the last call.

        Raises:
            ModelError: the two sides are apart; the message names the batch.
        """
        apart, self._apart = self._apart, []
        for batch, total, whole in apart:
            parts, one = float(total), float(whole)
            tolerance = _TOLERANCE.get(whole.dtype, 3e-2) * (abs(parts) + abs(one))
            if math.isfinite(one) and not abs(parts - one) <= tolerance:
                raise ModelError(
                    "micro-batches must add up to their batch, so loss_fn must be a mean over the "
                    f"samples, but of batch {batch} the loss is {one:.6g}, and its micro-batches "
                    f"make {parts:.6g} of it, as with class weights or ignored labels: {WAY_OUT}"
                )


def samples_dimension(shape: Sequence[int], samples: int) -> int | None:
    """Return the dimension of the samples: of their number, or the first, where each has a few."""
    if samples in shape:
        return list(shape).index(samples)
    return 0 if shape and shape[0] % samples == 0 else None


def _joined(
    parts: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs and labels of the batch."""
    outputs: list[Tensor] = []
    samples = parts[0][1][0].shape[0]
    for pieces in zip(*(each for each, _ in parts), strict=True):
        dimension = samples_dimension(pieces[0].shape, samples)
        if dimension is None:
            raise ModelError(
                f"the samples must be a dimension of the outputs, but {samples} samples gave the "
                f"shape {tuple(pieces[0].shape)}: {WAY_OUT}"
            )
        outputs.append(torch.cat(pieces, dimension))
    return outputs, [torch.cat(pieces) for pieces in zip(*(y for _, y in parts), strict=True)]
