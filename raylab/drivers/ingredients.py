"""What the configuration of a network's run names: data, network, optimiser and schedule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from raylab.config import NetworkConfig
from raylab.data import DataSet, load
from raylab.documents import shown
from raylab.drivers.resolve import batch_size_of
from raylab.errors import ConfigError
from raylab.models import build
from raylab.optimizers import Schedule, make_optimizer

__all__ = ["data_notes", "data_of", "model_of", "optimizer_of", "schedule_of"]


def data_of(config: NetworkConfig) -> DataSet:
    """Return the data set.

    Raises:
        InputError: it is unknown, missing or malformed.
    """
    return load(
        config.data,
        batch_size=batch_size_of(config),
        eval_batch_size=config.eval_batch_size,
        seed=config.seed,
        augment=config.augment,
        image_size=config.image_size,
        validation=config.validation,
        root=config.data_root,
        download=config.download,
    )


def data_notes(config: NetworkConfig, data: DataSet) -> list[str]:
    """Return what a user should know of keys that do not fit the data."""
    notes = []
    samples = data.train.num_samples
    batch_size = batch_size_of(config)
    if batch_size > samples:
        notes.append(
            f"batch_size={batch_size} is more than the {samples} training samples: every batch is "
            "all of them"
        )
    if (config.warmup_epochs or 0) > config.epochs:
        notes.append(
            f"warmup_epochs={config.warmup_epochs:g} is more than epochs={config.epochs}: the rate "
            "never comes to lr"
        )
    if config.freeze_fc_epochs >= config.epochs:
        notes.append(
            f"freeze_fc_epochs={config.freeze_fc_epochs:g} is no less than epochs={config.epochs}: "
            "linear layers are never trained"
        )
    return notes


def schedule_of(config: NetworkConfig) -> Schedule:
    """Return the schedule over epochs."""
    return Schedule(
        kind=config.schedule or "constant",
        warmup_epochs=config.warmup_epochs or 0.0,
        milestones=tuple(config.milestones or ()),
        gamma=0.1 if config.gamma is None else config.gamma,
        epochs=config.epochs,
        power=config.power or 2.0,
        freeze_fc_epochs=config.freeze_fc_epochs,
    )


def model_of(config: NetworkConfig, data: DataSet) -> nn.Sequential:
    """Return the network, with the weights that the seed draws.

    Raises:
        ConfigError: an option is none of the network's.
    """
    channels, height, _ = data.input_shape
    shape = {"in_channels": channels, "num_classes": data.num_classes, "image_size": height}
    _refuse("model_options", config.model_options, {"name": "model=NAME"}, "is set by")
    _refuse("model_options", config.model_options, dict.fromkeys(shape, "the data"), "follows from")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return build(config.model, **shape, **config.model_options)
        except (RuntimeError, MemoryError, OverflowError) as error:
            reason = _first_line(error)
            raise ConfigError(
                f"the network must fit into memory, but {config.model} for images of "
                f"{'x'.join(map(str, data.input_shape))} and {data.num_classes} classes, with "
                f"model_options={shown(config.model_options)}, does not: {reason}"
            ) from error
        except TypeError as error:
            if not config.model_options:
                raise
            raise ConfigError(
                f"`model_options` must fit {config.model}, but got "
                f"{shown(config.model_options)}: {_first_line(error)}"
            ) from error


def optimizer_of(config: NetworkConfig) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return what makes the optimiser of parameters.

    Raises:
        ConfigError: there is no such optimiser, or an option is none of its.
    """
    own = {key: f"{key}=VALUE" for key in ("lr", "momentum", "weight_decay")}
    own["name"] = "optimizer=NAME"
    _refuse("optimizer_options", config.optimizer_options, own, "is set by")
    given = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    options = {key: value for key, value in given.items() if value is not None}
    return make_optimizer(config.optimizer, config.lr or 0.0, **options, **config.optimizer_options)


def _first_line(error: BaseException) -> str:
    """Return what an error says without the C++ frames that torch has below it."""
    return str(error).partition("\n")[0]


def _refuse(key: str, options: Collection[str], elsewhere: dict[str, str], verb: str) -> None:
    for name in options:
        if name in elsewhere:
            raise ConfigError(f"`{key}.{name}` is no option: {name} {verb} {elsewhere[name]}")
