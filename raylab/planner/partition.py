"""Cut a chain into K stages so that the costliest is as cheap as it can be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from raylab.errors import ModelError

__all__ = ["balanced_cuts", "best_cuts", "one_move", "stage_costs"]


def balanced_cuts(costs: Sequence[float], stages: int) -> list[int]:
    """Return the cut points that minimise the largest stage cost, on equal devices.

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
    _check(stages, len(costs))
    return best_cuts([costs] * stages)


def best_cuts(
    costs: Sequence[Sequence[float]], entries: Sequence[Sequence[float]] | None = None
) -> list[int]:
    """Return the cut points that minimise the largest stage cost, by dynamic programming.

    Args:
        costs: `costs[k][i]` of block i on stage k, >= 0: times of unlike devices, or bytes, of
            which a stage holds the more the more batches it has in flight.
        entries: `entries[k][i]`, what stage k pays once where block i is its first, such as the
            inputs that it keeps; None: nothing.

    Returns:
        The index of the first block of stages 1..K-1, ascending.

    Raises:
        ModelError: there are more stages than blocks, or fewer than one.

    >>> best_cuts([[1, 1, 1, 1], [3, 3, 3, 3]])
    [3]
    """
    stages = len(costs)
    blocks = len(costs[0]) if stages else 0
    _check(stages, blocks)
    matrix = np.asarray(costs, dtype=np.float64)
    upto = np.concatenate([np.zeros((stages, 1)), np.cumsum(matrix, axis=1)], axis=1)
    enter = np.zeros_like(matrix) if entries is None else np.asarray(entries, dtype=np.float64)
    # best[j]: smallest possible largest cost of the first j blocks in the stages up to k.
    best = np.where(np.arange(blocks + 1) > 0, upto[0] + enter[0, 0], np.inf)
    choices = []
    for k in range(1, stages):
        following = np.full(blocks + 1, np.inf)
        choice = np.zeros(blocks + 1, dtype=int)
        for j in range(k + 1, blocks + 1):
            own = upto[k, j] - upto[k, k:j] + enter[k, k:j]
            largest = np.maximum(best[k:j], own)
            i = int(np.argmin(largest))
            following[j], choice[j] = largest[i], i + k
        best = following
        choices.append(choice)
    cuts: list[int] = []
    end = blocks
    for choice in reversed(choices):
        end = int(choice[end])
        cuts.insert(0, end)
    return cuts


def stage_costs(costs: Sequence[Sequence[float]], cuts: Sequence[int]) -> list[float]:
    """Return the cost of every stage.

    Args:
        costs: `costs[k][i]` of block i on stage k.
        cuts: first blocks of stages 1..K-1.
    """
    bounds = [0, *cuts, len(costs[0])]
    return [float(sum(costs[k][a:b])) for k, (a, b) in enumerate(itertools.pairwise(bounds))]


def one_move(
    costs: Sequence[Sequence[float]],
    cuts: Sequence[int],
    measured: Sequence[float],
    tolerance: float = 0.02,
) -> list[int] | None:
    """Return better cuts, one block away from `cuts`; None if no move helps.

    A whole stage does not take the sum of what its blocks took one by one. Each stage's blocks are
    therefore scaled by what the stage was measured to take over that sum.

    Args:
        costs: `costs[k][i]` of block i on stage k, in seconds.
        cuts: first blocks of stages 1..K-1.
        measured: time of each stage at these cuts, in seconds.
        tolerance: least gain of the slowest stage's time, as a share.
    """
    sums = stage_costs(costs, cuts)
    ratios = [m / s if s > 0 else 1.0 for m, s in zip(measured, sums, strict=True)]
    scaled = [[r * c for c in row] for r, row in zip(ratios, costs, strict=True)]
    blocks = len(costs[0])
    moves = []
    for link, cut in enumerate(cuts):
        for moved in (cut - 1, cut + 1):
            tried = [*cuts[:link], moved, *cuts[link + 1 :]]
            if all(a < b for a, b in itertools.pairwise([0, *tried, blocks])):
                moves.append((max(stage_costs(scaled, tried)), tried))
    if not moves:
        return None
    slowest, tried = min(moves)
    return tried if slowest < (1 - tolerance) * max(measured) else None


def _check(stages: int, blocks: int) -> None:
    if not 1 <= stages <= blocks:
        raise ModelError(
            f"1 <= stages <= blocks must hold, but got stages={stages} for a chain of {blocks} "
            "blocks: ask for fewer stages or give the model as more, smaller blocks"
        )
