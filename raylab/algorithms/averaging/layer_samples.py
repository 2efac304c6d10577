"""What single samples do to a layer, averaged over the workers beside the gradients.

CLARS divides by the mean over the samples of the norms of their gradients (HUO 4.7). Where workers
average gradients, the samples are those of all workers; else all would step at rates of their own,
and their replicas part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raylab.algorithms.stage.layerwise import LayerwiseOptimizer

__all__ = ["read_samples", "write_samples"]


def read_samples(optimizer: LayerwiseOptimizer | None, like: Tensor) -> Tensor:
    """Return the sums since the last step, flat, with their number; nothing where there are none.

    Args:
        optimizer: that may ask for them.
        like: tensor of the dtype and device that is wanted.
    """
    state = _recorded(optimizer)
    if state is None:
        return like.new_empty(0)
    sums = [number for name in sorted(state["sums"]) for number in state["sums"][name]]
    return torch.tensor([state["samples"], *sums]).to(like)


def write_samples(optimizer: LayerwiseOptimizer | None, mean: Tensor) -> None:
    """Replace the sums by their means over the workers, number included: ratios are what counts.

    Args:
        optimizer: that may have asked for them.
        mean: of what `read_samples` has returned.
    """
    state = _recorded(optimizer)
    if optimizer is None or state is None:
        return
    samples, *sums = mean.tolist()
    pairs = zip(sums[::2], sums[1::2], strict=True)
    named = dict(zip(sorted(state["sums"]), pairs, strict=True))
    optimizer.restore_samples({**state, "samples": samples, "sums": named})


def _recorded(optimizer: LayerwiseOptimizer | None) -> dict[str, Any] | None:
    """Return the state of an optimiser that looks at single samples; LARS does not."""
    state = None if optimizer is None else optimizer.samples_state()
    return state if state is not None and "sums" in state else None
