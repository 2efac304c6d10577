"""torch's optimisers and ours by name, as callables from parameters to an optimiser that pickle."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from raylab.errors import ConfigError
from raylab.optimizers.clars import CLARS
from raylab.optimizers.lars import LARS
from raylab.optimizers.nag import NAG

__all__ = ["make_optimizer", "optimizer_names"]

_NEEDS_MORE = {"lbfgs", "sparseadam", "muon"}
"""A closure, sparse gradients, matrices only: not for a stage's parameters as they come."""


_OWN: dict[str, Any] = {"nag": NAG, "lars": LARS, "clars": CLARS}
_NO_OPTION = {"params", "lr", "model"}


def _classes() -> dict[str, Any]:
    return _OWN | {
        name.lower(): cls
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls)
        and issubclass(cls, Optimizer)
        and cls is not Optimizer
        and name.lower() not in _NEEDS_MORE
    }


def optimizer_names() -> tuple[str, ...]:
    """Return the names that `make_optimizer` knows."""
    return tuple(sorted(_classes()))


def make_optimizer(
    name: str, lr: float, **options: Any
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return a callable that makes the optimiser `name` for the parameters of a stage.

    Args:
        name: nag, lars, clars, or a class of torch.optim, in any case: sgd, adam, adamw, ...
        lr: learning rate, > 0.
        options: the class's own.

    Raises:
        ConfigError: no such optimiser or option, or a value out of range.

    >>> make_optimizer("sgd", 0.1, momentum=0.9).keywords
    {'lr': 0.1, 'momentum': 0.9}
    """
    classes = _classes()
    cls = classes.get(name.lower())
    if cls is None:
        close = difflib.get_close_matches(name.lower(), classes, n=3)
        raise ConfigError(
            f"optimizer must be one of {', '.join(sorted(classes))}, but got {name!r}"
            + (f": did you mean {' or '.join(close)}?" if close else "")
        )
    known = set(inspect.signature(cls).parameters) - _NO_OPTION
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(
            f"{cls.__name__} takes {', '.join(sorted(known))}, but got {', '.join(unknown)}"
        )
    if not (isinstance(lr, (int, float)) and 0 < lr < math.inf):
        raise ConfigError(f"lr > 0 must hold, but got {lr!r}")
    factory = functools.partial(cls, lr=lr, **options)
    try:
        factory([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{cls.__name__} cannot be made with lr={lr}, {options}: {error}"
        ) from None
    return factory
