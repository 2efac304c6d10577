"""Accumulated Decoupled Learning (ADL alg. 1).

Every tick each stage forwards a batch that the stage below has put out one tick before, and
back-propagates batch b - 2(K-k), at the weights of that batch's forward (15); every M batches it
applies the mean of M such gradients:

    theta^{s+1} = theta^s - gamma_s (1/M) sum_{j<M} g^{Ms+j-2(K-k)}       (16)
"""

from raylab.algorithms.pipeline.method import PipelineMethod

__all__ = ["ADL", "adl_staleness"]

ADL = PipelineMethod(
    name="adl",
    title="ADL",
    source="ADL alg. 1; eq. 15-17",
    link_delay=2,
)
"""Link delay 2: one tick up, one tick down. At most 2(K-k)+1 graphs at stage k. Windows are
counted on the stage's own forward index; the drain goes on counting, and a last partial window is
applied with the same 1/M."""


def adl_staleness(window: int, position: int, *, accumulate: int, delay: int) -> int:
    """Return the staleness d_kj of (17), in updates.

    d_kj = s - floor((M s + j - D) / M), with D = 2(K-k) in the paper; the same holds for any sum
    of link delays D.

    The paper's text has the mean for stage 1 of K = 8 fall "from 16 to 4"; its own equation gives
    14 (M = 1), 7 (M = 2) and 3.5 (M = 4), and that is what is measured.

    Args:
        window: s, the number of the update.
        position: j in 0..M-1, place in the window.
        accumulate: M.
        delay: D, in batches.

    >>> sum(adl_staleness(9, j, accumulate=4, delay=14) for j in range(4)) / 4
    3.5
    """
    return window - (accumulate * window + position - delay) // accumulate
