"""Networks as chains of blocks.

Every model is an nn.Sequential whose children are the blocks between which a pipeline may cut it.
A block maps one tensor to one tensor and never writes into its input.
"""

from __future__ import annotations

from raylab.models.chains import chain
from raylab.models.dpn import dpn92
from raylab.models.registry import build, names
from raylab.models.resnet_cifar import resnet_cifar
from raylab.models.resnext import resnext
from raylab.models.small import cnn5, fcn5, mlp
from raylab.models.vgg import vgg

__all__ = [
    "build",
    "chain",
    "cnn5",
    "dpn92",
    "fcn5",
    "mlp",
    "names",
    "resnet_cifar",
    "resnext",
    "vgg",
]
