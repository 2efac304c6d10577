"""Diversely Stale Parameters (Xu, Huo, Huang 2019), compared in ADL Tables I and III.

First-in-first-out queues between the stages hold features and error gradients, and no stage waits
for another. Stage k keeps the input of every batch on its way, and when a batch's error gradient
comes back it runs the batch again with its current weights and back-propagates through that:
the parameters that a batch meets are stale by a different number of updates at every stage, going
up and coming down. The queues' lengths are the link delays.
"""

from raylab.algorithms.pipeline.method import PipelineMethod

__all__ = ["DSP"]

DSP = PipelineMethod(
    name="dsp",
    title="DSP",
    source="ADL Tables I, III; Xu et al. 2019",
    link_delay=2,
    replay=True,
)
"""Link delay 2 with replay: one batch in each queue, up and down. Memory is one graph and
2(K-k)+1 inputs at stage k."""
