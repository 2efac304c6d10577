"""Arguments of Python held against the rules that the same keys have on the command line."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raylab.config.rules import argument_rule
from raylab.documents import shown
from raylab.errors import ConfigError
from raylab.optimizers import Schedule, make_optimizer

__all__ = [
    "check_arguments",
    "check_resources",
    "optimizer_argument",
    "schedule_argument",
    "schedule_over",
]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
_MOMENTUM = ("sgd", "nag")
_WITH_THE_BATCH = ("lars", "clars")


def check_arguments(keys: type[BaseModel], **given: Any) -> None:
    """Hold arguments against the rules of keys with the same names.

    Args:
        keys: with their rules.
        given: by name.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """
    try:
        keys.model_validate(given)
    except ValidationError as error:
        name = str(error.errors(include_input=False)[0]["loc"][0])
        rule = argument_rule(name, keys.model_fields[name])
        raise ConfigError(f"{rule}, but got {shown(given[name])}") from None


def check_resources(name: str, given: Mapping[str, float] | None) -> None:
    """Check what an actor asks for.

    Args:
        name: of the argument.
        given: amounts by the names of Ray.

    Raises:
        ConfigError: it is no such mapping.
    """
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ConfigError(
            f'{name} must be a mapping, such as {{"CPU": 2, "GPU": 0.5}}, but got {shown(given)}'
        )
    for key, amount in given.items():
        number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        if not isinstance(key, str) or not number or not 0 <= amount < math.inf:
            raise ConfigError(
                f"{name} must have amounts >= 0 by the names of Ray, but got {shown(given)}"
            )
    if not given.get("CPU"):
        raise ConfigError(
            f"{name} must ask for some CPU, or the cluster may take the node away, but got "
            f"{shown(given)}: add CPU, for instance 0.5"
        )


def optimizer_argument(given: OptimizerFactory | str | None) -> OptimizerFactory:
    """Return what makes an optimiser of parameters.

    Args:
        given: that; a name as on the command line, with the default rate there; None: SGD with
            rate 0.05 and momentum 0.9.

    Raises:
        ConfigError: it is neither.
    """
    if given is None:
        return functools.partial(SGD, lr=0.05, momentum=0.9)
    if isinstance(given, str):
        name = given.lower()
        if name in _WITH_THE_BATCH:
            raise ConfigError(
                f"the rate of {name} goes with the samples of an update, but got "
                f"optimizer={given!r} without one: give raylab.optimizers.make_optimizer("
                f'"{name}", lr, momentum=0.9)'
            )
        if name in _MOMENTUM:
            return make_optimizer(name, 0.05, momentum=0.9)
        return make_optimizer(given, 1e-3)
    if isinstance(given, Optimizer):
        raise ConfigError(
            "optimizer must be a callable from parameters to an optimiser, since each actor makes "
            f"one of its own parameters, but got an instance of {type(given).__name__}: give "
            f"functools.partial(torch.optim.{type(given).__name__}, lr=...)"
        )
    if not callable(given):
        raise ConfigError(
            "optimizer must be a callable from parameters to an optimiser, or a name such as "
            f"'sgd', but got {shown(given)}"
        )
    return given


def schedule_argument(given: Any) -> Any:
    """Return a schedule: a `Schedule`, a callable, the name of a kind, or None.

    Raises:
        ConfigError: it is none of them, or a kind that needs more than its name.
    """
    if given is None or isinstance(given, Schedule):
        return given
    if isinstance(given, str):
        if given == "steps":
            raise ConfigError(
                "schedule='steps' needs milestones: give raylab.Schedule(kind='steps', "
                "milestones=(150, 225))"
            )
        Schedule(kind=given, epochs=1)  # type: ignore[arg-type]
        return given
    if isinstance(given, LRScheduler):
        raise ConfigError(
            "schedule must be a callable from an optimiser to a torch scheduler, since each actor "
            f"makes one of its own optimiser, but got an instance of {type(given).__name__}: give "
            f"functools.partial(torch.optim.lr_scheduler.{type(given).__name__}, ...)"
        )
    if not callable(given):
        raise ConfigError(
            "schedule must be a raylab.Schedule, a callable from an optimiser to a torch "
            f"scheduler, or constant, cosine or polynomial, but got {shown(given)}"
        )
    return given


def schedule_over(given: Any, epochs: int) -> Any:
    """Return a schedule with the length of the run, where only its kind was given.

    Args:
        given: as `schedule_argument` returned it.
        epochs: of the run.
    """
    return Schedule(kind=given, epochs=epochs) if isinstance(given, str) else given  # type: ignore[arg-type]
