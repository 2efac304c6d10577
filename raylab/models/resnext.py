"""ResNeXt for small images: residual blocks whose 3×3 convolution is grouped.

stem ─ group1_block1 … group1_blockn ─ group2_block1 … ─ group3_block1 … group3_blockn ─ head
       H×W, 256 channels               H/2×W/2, 512      H/4×W/4, 1024
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from raylab.errors import ConfigError
from raylab.models.blocks import conv_block, he_initialise, head, require_positive

__all__ = ["ResNeXtBlock", "resnext"]

_STEM_CHANNELS = 64
_GROUP_CHANNELS = (256, 512, 1024)


class ResNeXtBlock(nn.Module):
    """Compute relu(x' + bn(conv1×1(relu(bn(grouped conv3×3(relu(bn(conv1×1(x)))))))).

    x' is x where the shapes agree, else a strided 1×1 convolution with batch norm.

    Args:
        in_channels: C of the input, shape (N, C, H, W).
        out_channels: D of the output, shape (N, D, ⌈H/stride⌉, ⌈W/stride⌉).
        cardinality: groups of the 3×3 convolution.
        width: channels of each group.
        stride: 1, or 2 to halve the image.

    Reference: Xie et al. 2017, arXiv 1611.05431, Fig. 3(c) and Eq. (2).
    """

    def __init__(
        self, in_channels: int, out_channels: int, cardinality: int, width: int, stride: int = 1
    ) -> None:
        super().__init__()
        inner = cardinality * width
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(
            inner, inner, 3, stride=stride, padding=1, groups=cardinality, bias=False
        )
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.projection = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, D, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.projection(x))


def resnext(
    depth: int = 29,
    *,
    cardinality: int = 8,
    width: int = 64,
    in_channels: int = 3,
    num_classes: int = 10,
) -> nn.Sequential:
    """Build the ResNeXt of `depth` layers for images of about 32×32.

    `cardinality`×`width`d of the paper: 8×64d and 16×64d are its networks; 32×4d is a smaller one.

    >>> len(resnext(29, cardinality=2, width=4))  # stem, 3 × 3 residual blocks, head
    11

    Args:
        depth: number of layers, 9n + 2, n >= 1 being the number of blocks in each group.
        cardinality: groups of the 3×3 convolutions.
        width: channels of each group in the first third; doubled with each halving of the image.
        in_channels: channels of the image, shape (N, in_channels, H, W), any H and W.
        num_classes: size of the output, shape (N, num_classes).

    Raises:
        ConfigError: no n fits `depth`, or another argument is out of its range.

    Reference: Xie et al. 2017, arXiv 1611.05431, section 5.4.
    """
    require_positive(
        depth=depth,
        cardinality=cardinality,
        width=width,
        in_channels=in_channels,
        num_classes=num_classes,
    )
    if depth < 11 or (depth - 2) % 9:
        raise ConfigError(f"`depth = 9n + 2, n >= 1` must hold for a ResNeXt, but got {depth}")
    chain: OrderedDict[str, nn.Module] = OrderedDict()
    chain["stem"] = conv_block(in_channels, _STEM_CHANNELS)
    previous = _STEM_CHANNELS
    for group, channels in enumerate(_GROUP_CHANNELS):
        for index in range((depth - 2) // 9):
            stride = 2 if group and not index else 1
            block = ResNeXtBlock(previous, channels, cardinality, width * 2**group, stride)
            chain[f"group{group + 1}_block{index + 1}"] = block
            previous = channels
    chain["head"] = head(previous, num_classes)
    model = nn.Sequential(chain)
    he_initialise(model)
    return model
