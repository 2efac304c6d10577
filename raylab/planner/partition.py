"""Cut a chain into K stages so that the slowest is as fast as it can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raylab.errors import ModelError

__all__ = ["balanced_cuts"]


def balanced_cuts(costs: Sequence[float], stages: int) -> list[int]:
    """Return the cut points that minimise the largest stage cost, by dynamic programming.

    Args:
        costs: of each block, >= 0, in any one unit.
        stages: K, 1 <= K <= blocks; every stage gets at least one block.

    Returns:
        The index of the first block of stages 1..K-1, ascending.

    Raises:
        ModelError: there are more stages than blocks, or fewer than one.

    >>> balanced_cuts([1, 1, 1, 3], 2)
    [3]
    """
    blocks = len(costs)
    if not 1 <= stages <= blocks:
        raise ModelError(
            f"1 <= stages <= blocks must hold, but got stages={stages} for a chain of {blocks} "
            "blocks: ask for fewer stages or give the model as more, smaller blocks"
        )
    upto = np.concatenate([[0.0], np.cumsum(np.asarray(costs, dtype=np.float64))])
    # best[j]: smallest possible largest cost of the first j blocks in k stages.
    best = np.where(np.arange(blocks + 1) > 0, upto, np.inf)
    choices = []
    for k in range(2, stages + 1):
        following = np.full(blocks + 1, np.inf)
        choice = np.zeros(blocks + 1, dtype=int)
        for j in range(k, blocks + 1):
            largest = np.maximum(best[k - 1 : j], upto[j] - upto[k - 1 : j])
            i = int(np.argmin(largest))
            following[j], choice[j] = largest[i], i + k - 1
        best = following
        choices.append(choice)
    cuts: list[int] = []
    end = blocks
    for choice in reversed(choices):
        end = int(choice[end])
        cuts.insert(0, end)
    return cuts
