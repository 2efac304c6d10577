"""The loss over micro-batches, looked at before any actor starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raylab.algorithms.stage.loss_terms import loss_terms
from raylab.algorithms.stage.packing import packed
from raylab.algorithms.stage.part_losses import WAY_OUT
from raylab.errors import ModelError

__all__ = ["check_micro_batches"]

_TOLERANCE = 1e-4


def check_micro_batches(
    loss_fn: Callable[..., Tensor],
    outputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    parts: int,
) -> None:
    """Check with drawn outputs that the losses of micro-batches add up to that of their batch.

    Args:
        loss_fn: (outputs, labels) -> loss.
        outputs: of the first batch; their shapes and dtypes are asked for alone.
        labels: of the first batch.
        parts: micro-batches of a batch.

    Raises:
        ModelError: they do not.
    """
    labels = [t.detach().cpu() for t in labels]
    pieces = list(zip(*(t.chunk(parts) for t in labels), strict=True))
    if len(pieces) == 1:
        return
    generator = torch.Generator().manual_seed(0)
    # Between 0 and 1, as some losses want them.
    drawn = [_drawn(t, generator) for t in outputs]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        whole = float(loss_fn(packed(drawn), packed(labels)))
        if not math.isfinite(whole):
            return
        found: list[str] = []
        for cut in _cuts(drawn, [len(each[0]) for each in pieces]):
            try:
                total = _added(loss_fn, cut, pieces)
            except Exception as error:
                first_line = next(iter(str(error).splitlines()), "")
                found.append(f"a part raises {type(error).__name__}: {first_line}")
                continue
            if abs(total - whole) <= _TOLERANCE * (abs(total) + abs(whole)):
                return
            found.append(f"the micro-batches make {total:.6g}")
    raise ModelError(
        "micro-batches must add up to their batch, so loss_fn must be a mean over the samples "
        f"(or a sum that says so), but where {len(pieces)} parts of the first batch's labels with "
        f"drawn outputs are to make {whole:.6g}, "
        f"{found[0] if found else 'no dimension of the outputs is that of the samples'}: {WAY_OUT}"
    )


def _added(
    loss_fn: Callable[..., Tensor],
    outputs: Sequence[Sequence[Tensor]],
    labels: Sequence[Sequence[Tensor]],
) -> float:
    terms = loss_terms(loss_fn)
    shares = [1.0] * len(labels) if terms.sums else terms.shares(labels)
    return sum(
        share * float(loss_fn(packed(out), packed(y)))
        for share, out, y in zip(shares, outputs, labels, strict=True)
        if share
    )


def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    # In half precision nothing would tell rounding from a share that is missing.
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.rand(like.shape, generator=generator).mul_(0.9).add_(0.05).to(dtype)


def _cuts(outputs: Sequence[Tensor], sizes: Sequence[int]) -> list[list[list[Tensor]]]:
    """Return the ways to cut outputs into those of the parts: along each dimension that fits.

    Args:
        outputs: of the batch.
        sizes: of the parts, in samples.
    """
    samples = sum(sizes)
    ways = []
    for dimension in range(max(t.ndim for t in outputs)):
        lengths = [t.shape[dimension] if dimension < t.ndim else 0 for t in outputs]
        fits = all(n == samples or (not dimension and n and n % samples == 0) for n in lengths)
        if fits:
            cut = [
                torch.split(t, [size * n // samples for size in sizes], dimension)
                for t, n in zip(outputs, lengths, strict=True)
            ]
            ways.append([list(each) for each in zip(*cut, strict=True)])
    return ways
