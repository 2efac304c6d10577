"""Residual networks for small images: three groups of 16, 32 and 64 channels.

    stem ─ group1_block1 … group1_blockn ─ group2_block1 … ─ group3_block1 … group3_blockn ─ head
           H×W                             H/2×W/2           H/4×W/4

Every part in the picture is one block of the chain.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from raylab.errors import ConfigError
from raylab.models.blocks import conv_block, he_initialise, head, require_positive

__all__ = ["BasicBlock", "BlockKind", "Bottleneck", "resnet_cifar"]

BlockKind = Literal["auto", "basic", "bottleneck"]

_GROUP_CHANNELS = (16, 32, 64)
# Each block adds this many layers with weights; the stem and the head are two more.
_LAYERS_PER_BLOCK = {"basic": 2, "bottleneck": 3}


class BasicBlock(nn.Module):
    """Compute relu(x' + bn(conv3×3(relu(bn(conv3×3(x)))))).

    x' is the shortcut "A" of the paper, which has no parameters: every stride-th pixel of x, and
    zeros for the channels that x lacks.

    Args:
        in_channels: C of the input, shape (N, C, H, W).
        channels: D of the output, shape (N, D, ⌈H/stride⌉, ⌈W/stride⌉), D >= C.
        stride: 1, or 2 to halve the image.

    Reference: He et al. 2016, arXiv 1512.03385, Eq. (1) and section 4.2.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.missing_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, D, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x
        if self.stride > 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.missing_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.missing_channels))
        return F.relu(out + shortcut)


class Bottleneck(nn.Module):
    """Compute relu(x' + bn(conv1×1(relu(bn(conv3×3(relu(bn(conv1×1(x)))))))).

    x' is the shortcut "B" of the paper: x where the shapes agree, else a strided 1×1 convolution
    with batch norm. The stride is on the 3×3 convolution, as in the code that the authors'
    followers trained; the paper has it on the first 1×1 convolution.

    Args:
        in_channels: C of the input, shape (N, C, H, W).
        channels: width of the 3×3 convolution; the output has D = 4 × channels, shape
            (N, D, ⌈H/stride⌉, ⌈W/stride⌉).
        stride: 1, or 2 to halve the image.

    Reference: He et al. 2016, arXiv 1512.03385, Fig. 5 (right) and Eq. (2).
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
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
        """Map (N, C, H, W) to (N, 4 × channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.projection(x))


def resnet_cifar(
    depth: int,
    *,
    block: BlockKind = "auto",
    in_channels: int = 3,
    num_classes: int = 10,
) -> nn.Sequential:
    """Build the residual network of `depth` layers for images of about 32×32.

    The layers with weights are counted: the stem, 2 per basic or 3 per bottleneck block, the head.
    Projections are not counted.

    >>> len(resnet_cifar(20))  # stem, 3 × 3 residual blocks, head
    11

    Differs from the papers: the network of 164 layers has its activation after the addition, as
    all the others have, and not before the convolutions.

    Args:
        depth: number of layers; depth = 6n + 2 with basic and 9n + 2 with bottleneck blocks, n >= 1
            being the number of residual blocks in each group.
        block: "auto" is basic if `depth` allows it, else bottleneck; 164 is bottleneck always.
        in_channels: channels of the image, shape (N, in_channels, H, W), any H and W.
        num_classes: size of the output, shape (N, num_classes).

    Returns:
        The chain: stem, 3n residual blocks, head.

    Raises:
        ConfigError: no n fits `depth`, or another argument is out of its range.

    Reference: He et al. 2016, arXiv 1512.03385, section 4.2; for depth 164: He et al. 2016,
    arXiv 1603.05027.
    """
    require_positive(depth=depth, in_channels=in_channels, num_classes=num_classes)
    kind = _resolve(depth, block)
    make = BasicBlock if kind == "basic" else Bottleneck
    blocks_per_group = (depth - 2) // (3 * _LAYERS_PER_BLOCK[kind])

    chain: OrderedDict[str, nn.Module] = OrderedDict()
    chain["stem"] = conv_block(in_channels, _GROUP_CHANNELS[0])
    previous = _GROUP_CHANNELS[0]
    for group, channels in enumerate(_GROUP_CHANNELS, start=1):
        for index in range(1, blocks_per_group + 1):
            stride = 2 if group > 1 and index == 1 else 1
            chain[f"group{group}_block{index}"] = make(previous, channels, stride)
            previous = channels * make.expansion
    chain["head"] = head(previous, num_classes)
    model = nn.Sequential(chain)
    he_initialise(model)
    return model


def _resolve(depth: int, block: BlockKind) -> Literal["basic", "bottleneck"]:
    if block not in get_args(BlockKind):
        raise ConfigError(f"`block` must be one of {get_args(BlockKind)}, but got {block!r}")
    basic, bottleneck = (_fits(depth, kind) for kind in ("basic", "bottleneck"))
    if block == "auto" and (basic or bottleneck):
        return "basic" if basic and depth != 164 else "bottleneck"
    if block == "basic" and basic:
        return "basic"
    if block == "bottleneck" and bottleneck:
        return "bottleneck"
    rule = {
        "auto": "depth = 6n + 2 (basic) or depth = 9n + 2 (bottleneck)",
        "basic": "depth = 6n + 2",
        "bottleneck": "depth = 9n + 2",
    }[block]
    raise ConfigError(
        f"`{rule}, n >= 1` must hold for a CIFAR ResNet, but got (depth={depth}, block={block!r})"
    )


def _fits(depth: int, kind: str) -> bool:
    layers = 3 * _LAYERS_PER_BLOCK[kind]
    return depth > 2 and (depth - 2) % layers == 0
