"""Decoupled Greedy Learning (Belilovsky, Eickenberg, Oyallon 2020), compared in ADL Table I.

Every stage but the last has an auxiliary classifier on its output and minimises the same loss of
its own predictions; nothing comes back from above, so that no stage ever waits for a gradient:

    w_k, a_k <- w_k, a_k - gamma (1/M) sum of grad loss(classifier(h_k; a_k), y)

What a stage learns is what makes *its* features separable, not what helps the stages above.
"""

from __future__ import annotations

from torch import Tensor, nn

from raylab.algorithms.pipeline.method import PipelineMethod
from raylab.algorithms.stage.cut_features import CutFeatures

__all__ = ["DGL", "AuxiliaryClassifier"]

DGL = PipelineMethod(
    name="dgl",
    title="DGL",
    source="ADL Table I; Belilovsky et al. 2020",
    link_delay=0,
    feedback="none",
)
"""No gradient box, hence no delay and no staleness: one graph at every stage."""


class AuxiliaryClassifier(nn.Module):
    """Class scores from the pooled features of a stage: a linear layer on the mean of each channel.

    Args:
        cut: the features that it sees and the classes that it tells apart.
    """

    def __init__(self, cut: CutFeatures) -> None:
        super().__init__()
        pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if cut.image else []
        self.layers = nn.Sequential(*pool, nn.Linear(cut.channels, cut.classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (N, classes)."""
        scores: Tensor = self.layers(features)
        return scores
