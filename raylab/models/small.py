"""Small networks: fully connected ones, and a convolutional one of five layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from raylab.errors import ConfigError
from raylab.models.blocks import conv_block, he_initialise, head, require_positive

__all__ = ["cnn5", "fcn5", "mlp"]


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Build a fully connected network: each linear layer with its ReLU is one block.

    >>> [name for name, _ in mlp((784, 64, 10)).named_children()]
    ['layer1', 'layer2']

    Args:
        widths: features of the input, of every hidden layer, and of the output, at least two
            numbers. The input has shape (N, ...) with widths[0] numbers per sample; the output has
            shape (N, widths[-1]).

    Raises:
        ConfigError: fewer than two widths, or one that is not an integer >= 1.
    """
    if len(widths) < 2:
        raise ConfigError(
            f"`len(widths) >= 2` must hold (input and output), but got widths={tuple(widths)}"
        )
    require_positive(**{f"widths[{index}]": width for index, width in enumerate(widths)})
    last = len(widths) - 1
    chain: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(1, last + 1):
        layers: list[nn.Module] = [nn.Linear(widths[index - 1], widths[index])]
        if index == 1:
            layers.insert(0, nn.Flatten())
        if index < last:
            layers.append(nn.ReLU())
        chain[f"layer{index}"] = nn.Sequential(*layers)
    model = nn.Sequential(chain)
    he_initialise(model)
    return model


def fcn5(in_features: int, num_classes: int = 10, *, width: int = 512) -> nn.Sequential:
    """Build the fully connected network of five layers, all hidden ones of the same width.

    >>> len(fcn5(784))
    5

    Args:
        in_features: numbers per sample; the input has shape (N, ...).
        num_classes: size of the output, shape (N, num_classes).
        width: features of each of the four hidden layers.

    Raises:
        ConfigError: an argument is not an integer >= 1.
    """
    require_positive(in_features=in_features, num_classes=num_classes, width=width)
    return mlp((in_features, width, width, width, width, num_classes))


def cnn5(in_channels: int = 3, num_classes: int = 10, *, width: int = 32) -> nn.Sequential:
    """Build the convolutional network of five layers: four convolutions and a linear layer.

    The channels are width, width, pool, 2 width, 2 width, pool; there is no batch norm, so that
    the network has neither buffers nor a dependence between the samples of a batch.

    >>> len(cnn5())
    5

    Args:
        in_channels: channels of the image, shape (N, in_channels, H, W), any H and W.
        num_classes: size of the output, shape (N, num_classes).
        width: channels of the first convolution.

    Raises:
        ConfigError: an argument is not an integer >= 1.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes, width=width)
    model = nn.Sequential(
        OrderedDict(
            conv1=conv_block(in_channels, width, batch_norm=False),
            conv2=conv_block(width, width, batch_norm=False, pool=True),
            conv3=conv_block(width, 2 * width, batch_norm=False),
            conv4=conv_block(2 * width, 2 * width, batch_norm=False, pool=True),
            head=head(2 * width, num_classes),
        )
    )
    he_initialise(model)
    return model
