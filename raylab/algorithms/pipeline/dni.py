"""Decoupled neural interfaces with synthetic gradients (Jaderberg et al. 2017), as HUO compares.

At iteration n stage k updates at once, with the error gradient that a small network, the
synthesizer, makes from its features h and the labels y:

    w_k <- w_k - gamma [ d h_k / d w_k ] synthesizer_k(h_k, y)

The stage above sends down the gradient at its input, there itself partly synthetic; when it has
come, the synthesizer takes one step by least squares towards it. The last stage has the true one.

HUO 5.5.1, 6.5.1: two hidden convolutions of 5x5 with padding 2, batch normalisation and ReLU, an
output convolution of 5x5 with padding 2, the labels as further input. As deep as the features are
the hidden layers; features without height and width get linear layers in their place. The output
layer starts at zero, so that a stage stands still until its synthesizer has learnt something.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raylab.algorithms.pipeline.method import PipelineMethod
from raylab.algorithms.stage.cut_features import CutFeatures

__all__ = ["DNI", "Synthesizer"]

DNI = PipelineMethod(
    name="dni",
    title="DNI",
    source="HUO 5.5.1, 6.5.1; Jaderberg et al. 2017",
    link_delay=1,
    feedback="target",
)
"""Link delay 1: what comes back over a link corrects the synthesizer one batch later. The stage
itself is never late: one graph, and the features of one batch more, at every stage."""


class Synthesizer(nn.Module):
    """Error gradients out of features and labels.

    Args:
        cut: the features that it sees, and the classes of the labels.
    """

    def __init__(self, cut: CutFeatures) -> None:
        super().__init__()
        self.classes = cut.classes
        width = cut.channels
        layers: list[nn.Module] = []
        for given in (width + cut.classes, width):
            # The normalisation takes any bias away.
            layers += [_layer(cut, given, bias=False), _normalisation(cut), nn.ReLU()]
        output = _layer(cut, width)
        for p in output.parameters():
            nn.init.zeros_(p)
        self.layers = nn.Sequential(*layers, output)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return gradients of the features' shape.

        Args:
            features: (N, channels) or (N, channels, height, width).
            labels: (N,), whole numbers; one that is no class, such as an ignored index, is no
                input at all.
        """
        classes = torch.arange(self.classes, device=labels.device)
        given = (labels[:, None] == classes).to(features.dtype)
        if features.ndim == 4:
            given = given[:, :, None, None].expand(-1, -1, *features.shape[2:])
        gradients: Tensor = self.layers(torch.cat([features, given], dim=1))
        return gradients


def _layer(cut: CutFeatures, given: int, *, bias: bool = True) -> nn.Module:
    if cut.image:
        return nn.Conv2d(given, cut.channels, kernel_size=5, padding=2, bias=bias)
    return nn.Linear(given, cut.channels, bias=bias)


def _normalisation(cut: CutFeatures) -> nn.Module:
    return nn.BatchNorm2d(cut.channels) if cut.image else nn.BatchNorm1d(cut.channels)
