"""GPipe and 1F1B: synchronous pipelines over micro-batches, compared in ADL Table III.

A batch of b samples is cut into at most m micro-batches of b_i samples; the loss of each counts
b_i / b, so that without batch normalisation the sum is the gradient of the batch (with it, every
micro-batch is normalised by its own statistics). The pipeline empties before every update, hence
its bubble: of K + m - 1 slots, K - 1 are idle.
"""

from raylab.algorithms.pipeline.method import PipelineMethod

__all__ = ["GPIPE", "ONE_F_ONE_B"]

GPIPE = PipelineMethod(
    name="gpipe",
    title="GPipe",
    source="Huang et al. 2019; ADL Table III",
    link_delay=None,
    micro_batches=True,
    flush=True,
)
"""All forwards of a window, then all backwards: m graphs in flight at every stage."""

ONE_F_ONE_B = PipelineMethod(
    name="1f1b",
    title="1F1B",
    source="Narayanan et al. 2019 (PipeDream-flush)",
    link_delay=1,
    micro_batches=True,
    flush=True,
)
"""Stage k (from 0) runs K-1-k forwards ahead, then one forward, one backward: the delay of DDG,
counted in micro-batches and flushed. The same numbers as GPipe with at most K-k graphs."""
