"""Which computation a method's stages make."""

from __future__ import annotations

from raylab.algorithms.pipeline.method import Feedback, PipelineMethod
from raylab.algorithms.stage.delayed_stage import DelayedStage
from raylab.algorithms.stage.local_loss_stage import LocalLossStage
from raylab.algorithms.stage.synthetic_stage import SyntheticStage

__all__ = ["stage_rule"]

_RULES: dict[Feedback, type[DelayedStage]] = {
    "error": DelayedStage,
    "target": SyntheticStage,
    "none": LocalLossStage,
}


def stage_rule(method: PipelineMethod) -> type[DelayedStage]:
    """Return the class of a method's stages; all are called alike."""
    return _RULES[method.feedback]
