"""Build a network by its name.

resnet8, resnet20, …         CIFAR ResNets; also any other depth 6n + 2 or 9n + 2
resnet_cifar8, …             the same; the only spelling for the depths that torchvision has
resnet18, 50, 101, 152       torchvision's ResNets, with a stem for large images
densenet121, mobilenet_v2    torchvision's, likewise
resnet50_32px, resnet101_32px, densenet121_32px, mobilenet_v2_32px, googlenet
                             torchvision's, with a stem for small images
vgg11_bn, vgg16_bn, resnext29, dpn92
                             for small images
fcn5, cnn5, mlp              small networks
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from raylab.errors import ConfigError
from raylab.models.blocks import require_positive
from raylab.models.dpn import dpn92
from raylab.models.resnet_cifar import BlockKind, resnet_cifar
from raylab.models.resnext import resnext
from raylab.models.small import cnn5, fcn5, mlp
from raylab.models.vgg import vgg

__all__ = ["build", "names"]

# What a network is built for: (in_channels, num_classes, image_size).
_Shape = tuple[int, int, int]
_Builder = Callable[..., nn.Sequential]

_CIFAR_DEPTHS = (8, 20, 56, 98, 110, 164, 1202)
_TORCHVISION_DEPTHS = (18, 50, 101, 152)
_SMALL_DEPTHS = (50, 101)
# Of a smaller image nothing is left after the third transition.
_DENSENET_MIN_SIZE_PX = {"densenet121": 29, "densenet121_32px": 8}


def build(
    name: str,
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    image_size: int = 32,
    **options: Any,
) -> nn.Sequential:
    """Build the network called `name`, its weights drawn from torch's global generator.

    >>> len(build("resnet20"))
    11
    >>> len(build("mlp", in_channels=1, image_size=28, hidden=(100,)))
    2

    Args:
        name: one of `names()`, or `resnetN` or `resnet_cifarN` with another valid depth N.
        in_channels: channels of the image.
        num_classes: size of the output, shape (N, num_classes).
        image_size: height and width of the image in pixels; only networks that flatten the image
            are made for one size.
        **options: settings of this network: `block` of a CIFAR ResNet; `width` of fcn5 and cnn5;
            `hidden` of mlp, the features of its hidden layers; `zero_init_residual` of
            torchvision's ResNets; `drop_rate` of DenseNet; `dropout` of MobileNetV2 and GoogLeNet;
            `cardinality` and `width` of resnext29.

    Returns:
        The chain of blocks, (N, in_channels, image_size, image_size) -> (N, num_classes).

    Raises:
        ConfigError: an unknown name or option, or a value out of its range.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes, image_size=image_size)
    builder = _find(name)
    known = [
        parameter.name
        for parameter in inspect.signature(builder).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"an option of {name!r} must be one of {known}, but got {option!r}"
                + _closest(option, known)
            )
    return builder((in_channels, num_classes, image_size), **options)


def names() -> tuple[str, ...]:
    """Return the names that `build` knows, without the further depths of the CIFAR ResNets."""
    return tuple(_BUILDERS)


def _find(name: str) -> _Builder:
    if name in _BUILDERS:
        return _BUILDERS[name]
    match = re.fullmatch(r"resnet(?:_cifar)?(\d+)", name)
    if match:
        return _cifar(int(match[1]))
    raise ConfigError(
        f"a model's name must be one of {', '.join(names())}, or resnet_cifarN with a valid "
        f"depth N, but got {name!r}" + _closest(name, names())
    )


def _closest(value: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, known, n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _cifar(depth: int) -> _Builder:
    def builder(shape: _Shape, *, block: BlockKind = "auto") -> nn.Sequential:
        return resnet_cifar(depth, block=block, in_channels=shape[0], num_classes=shape[1])

    return builder


def _vgg(depth: int) -> _Builder:
    def builder(shape: _Shape) -> nn.Sequential:
        return vgg(depth, shape[0], shape[1])

    return builder


def _fcn5(shape: _Shape, *, width: int = 512) -> nn.Sequential:
    return fcn5(_in_features(shape), shape[1], width=width)


def _cnn5(shape: _Shape, *, width: int = 32) -> nn.Sequential:
    return cnn5(shape[0], shape[1], width=width)


def _mlp(shape: _Shape, *, hidden: Sequence[int] = (256, 256)) -> nn.Sequential:
    return mlp((_in_features(shape), *hidden, shape[1]))


def _resnext29(shape: _Shape, *, cardinality: int = 8, width: int = 64) -> nn.Sequential:
    return resnext(
        29, cardinality=cardinality, width=width, in_channels=shape[0], num_classes=shape[1]
    )


def _dpn92(shape: _Shape) -> nn.Sequential:
    return dpn92(shape[0], shape[1])


def _in_features(shape: _Shape) -> int:
    in_channels, _, image_size = shape
    return in_channels * image_size**2


# torchvision takes seconds to import, so its networks import it only when they are built.


def _resnet(depth: int) -> _Builder:
    def builder(shape: _Shape, *, zero_init_residual: bool = False) -> nn.Sequential:
        from raylab.models.torchvision_chains import build_resnet

        return build_resnet(depth, shape[0], shape[1], zero_init_residual=zero_init_residual)

    return builder


def _small_resnet(depth: int) -> _Builder:
    def builder(shape: _Shape, *, zero_init_residual: bool = False) -> nn.Sequential:
        from raylab.models.torchvision_small import build_small_resnet

        return build_small_resnet(depth, shape[0], shape[1], zero_init_residual=zero_init_residual)

    return builder


def _densenet(shape: _Shape, *, drop_rate: float = 0.0) -> nn.Sequential:
    from raylab.models.torchvision_chains import build_densenet

    _require_size("densenet121", shape)
    return build_densenet(shape[0], shape[1], drop_rate=drop_rate)


def _small_densenet(shape: _Shape, *, drop_rate: float = 0.0) -> nn.Sequential:
    from raylab.models.torchvision_small import build_small_densenet

    _require_size("densenet121_32px", shape)
    return build_small_densenet(shape[0], shape[1], drop_rate=drop_rate)


def _require_size(name: str, shape: _Shape) -> None:
    least = _DENSENET_MIN_SIZE_PX[name]
    if shape[2] < least:
        raise ConfigError(f"`image_size >= {least}` must hold for {name!r}, but got {shape[2]}")


def _mobilenet(shape: _Shape, *, dropout: float = 0.2) -> nn.Sequential:
    from raylab.models.torchvision_chains import build_mobilenet

    return build_mobilenet(shape[0], shape[1], dropout=dropout)


def _small_mobilenet(shape: _Shape, *, dropout: float = 0.2) -> nn.Sequential:
    from raylab.models.torchvision_small import build_small_mobilenet

    return build_small_mobilenet(shape[0], shape[1], dropout=dropout)


def _googlenet(shape: _Shape, *, dropout: float = 0.2) -> nn.Sequential:
    from raylab.models.torchvision_small import build_small_googlenet

    return build_small_googlenet(shape[0], shape[1], dropout=dropout)


_BUILDERS: dict[str, _Builder] = {
    **{f"resnet{depth}": _cifar(depth) for depth in _CIFAR_DEPTHS},
    "vgg11_bn": _vgg(11),
    "vgg16_bn": _vgg(16),
    "resnext29": _resnext29,
    "dpn92": _dpn92,
    "fcn5": _fcn5,
    "cnn5": _cnn5,
    "mlp": _mlp,
    **{f"resnet{depth}": _resnet(depth) for depth in _TORCHVISION_DEPTHS},
    "densenet121": _densenet,
    "mobilenet_v2": _mobilenet,
    **{f"resnet{depth}_32px": _small_resnet(depth) for depth in _SMALL_DEPTHS},
    "densenet121_32px": _small_densenet,
    "mobilenet_v2_32px": _small_mobilenet,
    "googlenet": _googlenet,
}
