"""The parts that several networks are made of, and the initialisation that they share.

A block maps one tensor to one tensor and never writes into its input: a stage of a pipeline keeps
its inputs to compute the forward pass again. Our own blocks have no in-place operation at all; it
would save nothing, as batch norm keeps its input and a convolution keeps the ReLU's output.
"""

from __future__ import annotations

from torch import nn

from raylab.errors import ConfigError

__all__ = ["conv_block", "he_initialise", "head", "require_positive"]


def require_positive(**values: int) -> None:
    """Check that each named value is an integer >= 1.

    >>> require_positive(in_channels=3, num_classes=10)

    Raises:
        ConfigError: one of them is not.
    """
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"`{name}` must be an integer >= 1, but got {value!r}")


def conv_block(
    in_channels: int,
    out_channels: int,
    *,
    batch_norm: bool = True,
    pool: bool = False,
) -> nn.Sequential:
    """Make a 3×3 convolution, batch norm, a ReLU and perhaps a 2×2 max pool: one block.

    Args:
        in_channels: C of the input, shape (N, C, H, W).
        out_channels: D of the output, shape (N, D, H, W), or (N, D, ⌈H/2⌉, ⌈W/2⌉) with the pool.
        batch_norm: whether to normalise; without it the convolution has a bias.
        pool: whether to halve the image. Rounding up lets an image of any size pass any number
            of pools; for even sizes it is the usual pool.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not batch_norm)
    ]
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_channels))
    layers.append(nn.ReLU())
    if pool:
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers)


def head(in_channels: int, num_classes: int) -> nn.Sequential:
    """Make the last block: average over the image, then a linear layer.

    Args:
        in_channels: C of the input, shape (N, C, H, W) with any H and W.
        num_classes: size of the output, shape (N, num_classes).
    """
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))


def he_initialise(model: nn.Module) -> None:
    """Draw all weights anew from torch's global generator.

    Convolutions: w ~ N(0, 2 / n) with n = kernel height × kernel width × output channels. Linear
    layers: w ~ N(0, 2 / n) with n = inputs, except the last, which no ReLU follows:
    w ~ N(0, 1 / n). Batch norm is the identity, and every bias is zero.

    Reference: He et al. 2015, arXiv 1502.01852, Eqs. (10) and (14).
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            last = module is linear[-1]
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if last else "relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
