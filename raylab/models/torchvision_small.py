"""torchvision's networks for images of about 32×32: a 3×3 stem of stride 1, and no max pool in it.

    resnet50_32px, 101      stem of 64 channels; the groups see 32×32, 16×16, 8×8, 4×4
    densenet121_32px        stem of 64 channels; the dense blocks see 32×32, 16×16, 8×8, 4×4
    mobilenet_v2_32px       strides of the stem and of the second group are 1
    googlenet               stem without pools; the inceptions see 32×32, 16×16, 8×8

These are the networks of DASGD's Table I; everything after the stem is torchvision's, and so are
the blocks of the chains. For ImageNet the stems divide height and width by 4 first, which leaves
one pixel of a small image before the last group begins.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from raylab._torchvision import import_torchvision
from raylab.models.blocks import require_positive
from raylab.models.torchvision_chains import chain_torchvision

__all__ = [
    "build_small_densenet",
    "build_small_googlenet",
    "build_small_mobilenet",
    "build_small_resnet",
]

_models = import_torchvision().models

# Expansion, channels, blocks, stride: Table 2 of the paper, but stride 1 for the 24 channels.
_MOBILENET_GROUPS = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def build_small_resnet(
    depth: int, in_channels: int, num_classes: int, *, zero_init_residual: bool = False
) -> nn.Sequential:
    """Build torchvision's ResNet of `depth` 18, 50, 101 or 152 with a small stem, as a chain.

    Args:
        depth: number of layers.
        in_channels: channels of the image, shape (N, in_channels, H, W), any H and W.
        num_classes: size of the output, shape (N, num_classes).
        zero_init_residual: whether each residual block starts as the identity.

    Reference: He et al. 2016, arXiv 1512.03385, Table 1; the stem as in its section 4.2.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes)
    make = getattr(_models, f"resnet{depth}")
    model = make(weights=None, num_classes=num_classes, zero_init_residual=zero_init_residual)
    model.conv1 = _stem(in_channels, 64, "fan_out")
    model.maxpool = nn.Identity()
    return _chain(model)


def build_small_densenet(
    in_channels: int, num_classes: int, *, drop_rate: float = 0.0
) -> nn.Sequential:
    """Build torchvision's DenseNet-121 with a small stem, as a chain.

    Args:
        in_channels: channels of the image, shape (N, in_channels, H, W), H and W at least 8.
        num_classes: size of the output, shape (N, num_classes).
        drop_rate: probability of dropout after each dense layer.

    Reference: Huang et al. 2017, arXiv 1608.06993, Table 1; the stem as in its section 3.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes)
    model = _models.densenet121(weights=None, num_classes=num_classes, drop_rate=drop_rate)
    model.features.conv0 = _stem(in_channels, 64, "fan_in")
    model.features.pool0 = nn.Identity()
    return _chain(model)


def build_small_mobilenet(
    in_channels: int, num_classes: int, *, dropout: float = 0.2
) -> nn.Sequential:
    """Build torchvision's MobileNetV2 with its first two strides left out, as a chain.

    Args:
        in_channels: channels of the image, shape (N, in_channels, H, W), any H and W.
        num_classes: size of the output, shape (N, num_classes).
        dropout: probability of dropout before the last layer.

    Reference: Sandler et al. 2018, arXiv 1801.04381, Table 2.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes)
    model = _models.mobilenet_v2(
        weights=None,
        num_classes=num_classes,
        dropout=dropout,
        inverted_residual_setting=_MOBILENET_GROUPS,
    )
    model.features[0][0] = _stem(in_channels, 32, "fan_out")
    return _chain(model)


def build_small_googlenet(
    in_channels: int, num_classes: int, *, dropout: float = 0.2
) -> nn.Sequential:
    """Build torchvision's GoogLeNet with a small stem and no auxiliary classifiers, as a chain.

    Differs from the paper as torchvision's does: batch norm, and 3×3 convolutions where an
    inception has 5×5. Weights are drawn as torch draws those of convolutions; the truncated normal
    of width 0.01 that torchvision used to draw has no reason left with batch norm.

    Args:
        in_channels: channels of the image, shape (N, in_channels, H, W), any H and W.
        num_classes: size of the output, shape (N, num_classes).
        dropout: probability of dropout before the last layer.

    Reference: Szegedy et al. 2015, arXiv 1409.4842, Table 1.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes)
    model = _models.googlenet(
        weights=None,
        num_classes=num_classes,
        aux_logits=False,
        init_weights=False,
        dropout=dropout,
    )
    model.conv1.conv = _stem(in_channels, 64, "fan_out")
    model.maxpool1, model.maxpool2 = nn.Identity(), nn.Identity()
    return _chain(model)


def _stem(in_channels: int, out_channels: int, mode: Literal["fan_in", "fan_out"]) -> nn.Conv2d:
    """Make a 3×3 convolution that keeps the image's size, initialised as the model's own are."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")
    return conv


def _chain(model: Any) -> nn.Sequential:
    chain = chain_torchvision(model)
    assert chain is not None, "the models built here are those that can be chained"  # noqa: S101
    return chain
