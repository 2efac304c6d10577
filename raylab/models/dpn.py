"""Dual path networks for small images: a residual and a dense path side by side.

    stem ─ group1_block1 … ─ group2_block1 … ─ group3_block1 … ─ group4_block1 … ─ head
           H×W               H/2×W/2           H/4×W/4           H/8×W/8

Between blocks both paths travel as one tensor: the residual channels first, then the dense ones,
which every block makes more.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from raylab.models.blocks import conv_block, he_initialise, head, require_positive

__all__ = ["DualPathBlock", "dpn92"]

_STEM_CHANNELS = 64
_CARDINALITY = 32
# Blocks, width of the 3×3 convolution, residual channels, dense channels that a block adds.
_DPN92_GROUPS = (
    (3, 96, 256, 16),
    (4, 192, 512, 32),
    (20, 384, 1024, 24),
    (3, 768, 2048, 128),
)


class DualPathBlock(nn.Module):
    """Add to the residual channels and append to the dense ones: [r, d] -> [r' + a, d', b].

    [a, b] is conv1×1(grouped conv3×3(conv1×1([r, d]))), each convolution after a batch norm and a
    ReLU. [r', d'] is the input, or a 1×1 convolution of it in the first block of a group, where the
    channels change.

    Args:
        in_channels: C of the input, shape (N, C, H, W).
        inner: width of the 3×3 convolution.
        residual: channels of the residual path, the first ones of the output.
        grown: channels that are appended to the dense path.
        first: whether this is the first block of a group: it makes both paths from its input,
            2 `grown` channels for the dense one.
        stride: 1, or 2 to halve the image in a first block.

    Reference: Chen et al. 2017, arXiv 1707.01629, section 4.1 and Fig. 2(d).
    """

    def __init__(
        self,
        in_channels: int,
        inner: int,
        residual: int,
        grown: int,
        *,
        first: bool = False,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = (
            _norm_conv(in_channels, residual + 2 * grown, 1, stride=stride)
            if first
            else nn.Identity()
        )
        self.layers = nn.Sequential(
            _norm_conv(in_channels, inner, 1),
            _norm_conv(inner, inner, 3, stride=stride, groups=_CARDINALITY),
            _norm_conv(inner, residual + grown, 1),
        )
        self.out_channels = (residual + 2 * grown if first else in_channels) + grown

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        path = self.shortcut(x)
        out = self.layers(x)
        r = self.residual
        return torch.cat([path[:, :r] + out[:, :r], path[:, r:], out[:, r:]], 1)


def dpn92(in_channels: int = 3, num_classes: int = 10) -> nn.Sequential:
    """Build DPN-92 (32×3d) for images of about 32×32; each dual path block is one block.

    >>> len(dpn92())  # stem, 3 + 4 + 20 + 3 dual path blocks, head
    32

    Differs from the paper: the stem is a 3×3 convolution that keeps the image's size, with no max
    pool.

    Args:
        in_channels: channels of the image, shape (N, in_channels, H, W), any H and W.
        num_classes: size of the output, shape (N, num_classes).

    Reference: Chen et al. 2017, arXiv 1707.01629, Table 1.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes)
    chain: OrderedDict[str, nn.Module] = OrderedDict()
    chain["stem"] = conv_block(in_channels, _STEM_CHANNELS)
    previous = _STEM_CHANNELS
    for group, (blocks, inner, residual, grown) in enumerate(_DPN92_GROUPS, start=1):
        for index in range(1, blocks + 1):
            first = index == 1
            stride = 2 if first and group > 1 else 1
            block = DualPathBlock(previous, inner, residual, grown, first=first, stride=stride)
            chain[f"group{group}_block{index}"] = block
            previous = block.out_channels
    # The blocks end with a convolution: what follows them all is a batch norm and a ReLU.
    chain["head"] = nn.Sequential(nn.BatchNorm2d(previous), nn.ReLU(), *head(previous, num_classes))
    model = nn.Sequential(chain)
    he_initialise(model)
    return model


def _norm_conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
    )
