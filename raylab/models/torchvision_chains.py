"""torchvision's ResNets, DenseNets, MobileNetV2 and GoogLeNet as chains of blocks.

    ResNet       stem ─ layer1_block1 … layer4_blockn ─ head
    DenseNet     stem ─ denseblock1_layer1 … ─ transition1 ─ … ─ denseblock4_layern ─ head
    MobileNetV2  stem ─ block1 … block17 ─ last_conv ─ head
    GoogLeNet    stem ─ inception3a ─ inception3b ─ … ─ inception5b ─ head

A chain holds the very modules of the original: the two compute the same, and training or loading
one changes the other. The in-place ReLUs of the original stay, since within a block none of them is
the first operation: they write over a result of the same block.

Every block is of a class of this module, also where torchvision's own would do. Unpickling a block
therefore imports this module first, and with it torchvision in the way that works on any machine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raylab._torchvision import import_torchvision
from raylab.models.blocks import require_positive

__all__ = [
    "Block",
    "DenseLayer",
    "build_densenet",
    "build_mobilenet",
    "build_resnet",
    "chain_torchvision",
]

_models = import_torchvision().models


class Block(nn.Sequential):
    """Modules of the original, one after the other."""


class DenseLayer(nn.Module):
    """Append the channels that a dense layer computes: x -> cat([x, layer(x)]).

    The original keeps the list of all earlier outputs and concatenates it before each layer. The
    chain passes on the concatenation itself, which has the same channels in the same order.

    Args:
        layer: torchvision's dense layer, (N, C, H, W) -> (N, growth, H, W).

    Reference: Huang et al. 2017, arXiv 1608.06993, Eq. (2).
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat([x, self.layer(x)], 1)


def chain_torchvision(model: nn.Module) -> nn.Sequential | None:
    """Return a torchvision model as a chain that shares its modules, or None for any other model.

    A subclass with a forward of its own (the quantised models, for one) is such an other model:
    what it computes is unknown.

    Args:
        model: (N, C, H, W) -> (N, classes); its modules may have been replaced, the last one by
            another number of classes, say.

    Returns:
        The chain, in the same mode (training or evaluation) as the model.
    """
    if _is(model, _models.ResNet):
        named = _resnet_blocks(model)
    elif _is(model, _models.DenseNet):
        named = _densenet_blocks(model)
    elif _is(model, _models.MobileNetV2):
        named = _mobilenet_blocks(model)
    elif _is(model, _models.GoogLeNet) and not (model.aux_logits or model.transform_input):
        named = _googlenet_blocks(model)
    else:
        return None
    chain = nn.Sequential(OrderedDict(named))
    # A new container starts in training mode. Only the containers are set, never the modules of
    # the original: some of these may be frozen on purpose.
    original = set(model.modules())
    for module in chain.modules():
        if module not in original:
            module.training = model.training
    return chain


def _is(model: nn.Module, cls: type[nn.Module]) -> bool:
    return isinstance(model, cls) and all(
        getattr(type(model), name, None) is getattr(cls, name, None)
        for name in ("forward", "_forward_impl", "_forward")
    )


def _resnet_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    parts = dict(model.named_children())
    yield "stem", Block(parts["conv1"], parts["bn1"], parts["relu"], parts["maxpool"])
    for group in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(parts[group].children(), start=1):
            yield f"{group}_block{index}", Block(block)
    yield "head", Block(parts["avgpool"], nn.Flatten(), parts["fc"])


def _densenet_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    parts = dict(model.named_children())
    between: dict[str, nn.Module] = {}  # the modules since the last dense block
    name_between = "stem"
    for name, module in parts["features"].named_children():
        if not isinstance(module, _models.densenet._DenseBlock):
            between[name] = module
            continue
        if between:
            yield name_between or "_".join(between), Block(*between.values())
        for index, layer in enumerate(module.children(), start=1):
            yield f"{name}_layer{index}", DenseLayer(layer)
        between, name_between = {}, ""
    pool = nn.AdaptiveAvgPool2d(1)
    yield "head", Block(*between.values(), nn.ReLU(), pool, nn.Flatten(), parts["classifier"])


def _mobilenet_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    parts = dict(model.named_children())
    first, *blocks, last = parts["features"].children()
    yield "stem", Block(first)
    for index, block in enumerate(blocks, start=1):
        yield f"block{index}", Block(block)
    yield "last_conv", Block(last)
    yield "head", Block(nn.AdaptiveAvgPool2d(1), nn.Flatten(), parts["classifier"])


def _googlenet_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    parts = dict(model.named_children())
    stem = [parts[name] for name in ("conv1", "maxpool1", "conv2", "conv3", "maxpool2")]
    yield "stem", Block(*stem)
    for name, module in parts.items():
        if name.startswith("inception"):
            # A pool stands with the block before it: fewer features cross a cut there.
            pool = {"inception3b": "maxpool3", "inception4e": "maxpool4"}.get(name)
            yield name, Block(module, parts[pool]) if pool else Block(module)
    yield "head", Block(parts["avgpool"], nn.Flatten(), parts["dropout"], parts["fc"])


def build_resnet(
    depth: int, in_channels: int, num_classes: int, *, zero_init_residual: bool = False
) -> nn.Sequential:
    """Build torchvision's ResNet of `depth` 18, 50, 101 or 152 as a chain.

    Args:
        depth: number of layers.
        in_channels: channels of the image; other than 3, the first convolution is replaced.
        num_classes: size of the output, shape (N, num_classes).
        zero_init_residual: whether each residual block starts as the identity.

    Reference: He et al. 2016, arXiv 1512.03385, Table 1.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes)
    make = getattr(_models, f"resnet{depth}")
    model = make(weights=None, num_classes=num_classes, zero_init_residual=zero_init_residual)
    if in_channels != 3:
        model.conv1 = _with_channels(model.conv1, in_channels, "fan_out")
    return _as_chain(model)


def build_densenet(in_channels: int, num_classes: int, *, drop_rate: float = 0.0) -> nn.Sequential:
    """Build torchvision's DenseNet-121 as a chain; each dense layer is one block.

    Args:
        in_channels: channels of the image; other than 3, the first convolution is replaced.
        num_classes: size of the output, shape (N, num_classes).
        drop_rate: probability of dropout after each dense layer.

    Reference: Huang et al. 2017, arXiv 1608.06993, Table 1.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes)
    model = _models.densenet121(weights=None, num_classes=num_classes, drop_rate=drop_rate)
    if in_channels != 3:
        model.features.conv0 = _with_channels(model.features.conv0, in_channels, "fan_in")
    return _as_chain(model)


def build_mobilenet(in_channels: int, num_classes: int, *, dropout: float = 0.2) -> nn.Sequential:
    """Build torchvision's MobileNetV2 as a chain; each inverted residual is one block.

    Args:
        in_channels: channels of the image; other than 3, the first convolution is replaced.
        num_classes: size of the output, shape (N, num_classes).
        dropout: probability of dropout before the last layer.

    Reference: Sandler et al. 2018, arXiv 1801.04381, Table 2.
    """
    require_positive(in_channels=in_channels, num_classes=num_classes)
    model = _models.mobilenet_v2(weights=None, num_classes=num_classes, dropout=dropout)
    if in_channels != 3:
        stem = model.features[0]
        stem[0] = _with_channels(stem[0], in_channels, "fan_out")
    return _as_chain(model)


def _with_channels(conv: Any, in_channels: int, mode: Literal["fan_in", "fan_out"]) -> nn.Conv2d:
    """Make a like convolution for `in_channels`, initialised as the model initialises its own."""
    new = nn.Conv2d(
        in_channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        bias=False,
    )
    nn.init.kaiming_normal_(new.weight, mode=mode, nonlinearity="relu")
    return new


def _as_chain(model: nn.Module) -> nn.Sequential:
    chain = chain_torchvision(model)
    assert chain is not None, "the models built here are those that can be chained"  # noqa: S101
    return chain
