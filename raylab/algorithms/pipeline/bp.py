"""Back-propagation through the stages, locked: the papers' baseline (HUO 5.2, eq. 5.2 to 5.5)."""

from raylab.algorithms.pipeline.method import PipelineMethod

__all__ = ["BP"]

BP = PipelineMethod(
    name="bp",
    title="Back-propagation",
    source="HUO eq. 5.2-5.5",
    link_delay=0,
)
"""Link delay 0: stage k waits for the gradient of the batch that it has just passed on, so one
stage works at a time. w <- w - eta (1/M) sum of M fresh gradients."""
