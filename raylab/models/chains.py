"""Turn a model into a chain of blocks, which a pipeline can cut."""

from __future__ import annotations

from torch import nn

from raylab.errors import ModelError

__all__ = ["chain"]


def chain(model: nn.Module) -> nn.Sequential:
    """Return `model` as an nn.Sequential whose children are its blocks, sharing its modules.

    A pipeline may be cut between any two children. An nn.Sequential is a chain already and is
    returned as it is. A torchvision ResNet, DenseNet, MobileNetV2 or GoogLeNet is cut before and
    after each residual block, dense layer, inverted residual or inception. Nothing is copied:
    loading a state into the chain, or training it, changes the original.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> chain(model) is model
    True

    Args:
        model: a network of one tensor to one tensor.

    Returns:
        The chain; its output and its gradients are the model's.

    Raises:
        ModelError: the blocks of this type of model are not known.
    """
    cls = type(model)
    if isinstance(model, nn.Sequential) and cls.forward is nn.Sequential.forward:
        return model
    if any(base.__module__.startswith("torchvision.") for base in cls.__mro__):
        # Imported here only: torchvision takes seconds to import, and few models need it.
        from raylab.models.torchvision_chains import chain_torchvision

        result = chain_torchvision(model)
        if result is not None:
            return result
    raise ModelError(
        "a model must be an nn.Sequential, or a torchvision ResNet, DenseNet, MobileNetV2 or "
        "GoogLeNet (without auxiliary classifiers) with its own forward, but got "
        f"{cls.__module__}.{cls.__qualname__}; give an nn.Sequential or a list of blocks, each a "
        "module of one tensor to one tensor"
    )
