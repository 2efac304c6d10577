"""Decoupled parallel backpropagation with delayed gradients (HUO chapter 5, alg. 9 and 10).

At iteration t stage k (counted from 1) applies the gradient of batch t-K+k, evaluated at the
weights and activations of that batch's own forward (5.6):

    w_k <- w_k - gamma_t [ grad f_{x(t-K+k)}(w^{t-K+k}) ]_k        (5.9)

with 0 for batches of negative index (5.8), so that Adam's step count is global (alg. 10) and
weight decay acts from the first step.
"""

from raylab.algorithms.pipeline.method import PipelineMethod

__all__ = ["DDG", "ddg_staleness"]

DDG = PipelineMethod(
    name="ddg",
    title="DDG",
    source="HUO alg. 9, 10; eq. 5.6-5.9",
    link_delay=1,
)
"""Link delay 1. At most K-k+1 graphs at stage k. Differs from the paper in time only: the forward
is driven by data instead of locked; `barrier=True` gives the lock step of HUO Table 3."""


def ddg_staleness(stages: int, stage: int) -> int:
    """Return the staleness K-k of stage `stage`, counted from 1 as in the paper (M = 1)."""
    return stages - stage
