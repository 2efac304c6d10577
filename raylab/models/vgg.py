"""VGG networks with batch norm, for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from raylab.errors import ConfigError
from raylab.models.blocks import conv_block, he_initialise, head, require_positive

__all__ = ["vgg"]

# Output channels of the convolutions; a max pool ends each group.
_GROUPS: dict[int, tuple[tuple[int, ...], ...]] = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


def vgg(depth: int, in_channels: int = 3, num_classes: int = 10) -> nn.Sequential:
    """Build VGG-11, -13, -16 or -19 with batch norm (configurations A, B, D, E).

    Each convolution with its batch norm, ReLU and, at the end of a group, max pool is one block.

    >>> len(vgg(11))  # 8 convolutions, head
    9

    Differs from the paper: batch norm; convolutions without bias, which batch norm would cancel;
    and, as usual for small images, one linear layer after an average over the image in place of
    three, so that any image size works and `depth` counts two layers that are not there.

    Args:
        depth: 11, 13, 16 or 19.
        in_channels: channels of the image, shape (N, in_channels, H, W), any H and W.
        num_classes: size of the output, shape (N, num_classes).

    Raises:
        ConfigError: there is no such depth, or another argument is out of its range.

    Reference: Simonyan and Zisserman 2015, arXiv 1409.1556, Table 1.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes)
    if depth not in _GROUPS:
        raise ConfigError(f"`depth` of a VGG must be one of {tuple(_GROUPS)}, but got {depth!r}")
    chain: OrderedDict[str, nn.Module] = OrderedDict()
    previous = in_channels
    for group, widths in enumerate(_GROUPS[depth], start=1):
        for index, channels in enumerate(widths, start=1):
            pool = index == len(widths)
            chain[f"group{group}_conv{index}"] = conv_block(previous, channels, pool=pool)
            previous = channels
    chain["head"] = head(previous, num_classes)
    model = nn.Sequential(chain)
    he_initialise(model)
    return model
