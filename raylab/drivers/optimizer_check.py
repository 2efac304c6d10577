"""An optimiser's factory called with what an actor will call it with, before there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from raylab.algorithms.stage.layerwise import watch
from raylab.algorithms.stage.trained_by import no_zero_step, trained_by
from raylab.errors import ConfigError

__all__ = ["check_zero_step", "untrained", "untrained_note"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
_NAMED = 3


def untrained(
    optimizer: OptimizerFactory, module: nn.Module, noun: str
) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters, with their names, that an optimiser will not take.

    Args:
        optimizer: from parameters to a torch optimiser.
        module: of the actor; it is not changed.
        noun: what the actor is, for errors.

    Raises:
        ConfigError: it makes no optimiser, or one that trains none of them, or others.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        return []
    # Stand-ins of the same shapes, whose memory is never touched.
    given = [nn.Parameter(torch.empty_like(p, device="cpu")) for _, p in named]
    try:
        made: Any = optimizer(given)
    except Exception as error:
        raise ConfigError(
            f"optimizer must make an optimiser of the parameters of {noun}, but it raises "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Optimizer):
        raise ConfigError(
            f"optimizer must make a torch optimiser of parameters, but it made a "
            f"{type(made).__name__}"
        )
    held = {id(p) for p in trained_by(made, given)}
    return [each for each, p in zip(named, given, strict=True) if id(p) not in held]


def untrained_note(left: Sequence[tuple[str, nn.Parameter]]) -> list[str]:
    """Return what to tell of parameters that no optimiser has taken, in no or one line."""
    if not left:
        return []
    names = ", ".join(name for name, _ in left[:_NAMED]) + ", ..." * (len(left) > _NAMED)
    return [
        f"the optimiser leaves {sum(p.numel() for _, p in left)} weights as they are, in "
        f"{len(left)} parameters ({names})"
    ]


def check_zero_step(optimizer: OptimizerFactory) -> None:
    """Check that an optimiser bears a gradient of zero, with which late methods begin.

    Raises:
        ConfigError: it does not.
    """
    layer = nn.Linear(4, 4, bias=False)
    try:
        made = optimizer([*layer.parameters()])
    except Exception:  # it may not take a matrix alone: then the run will tell
        return
    watch(made, layer)
    for _ in range(2):
        layer.weight.grad = torch.zeros_like(layer.weight)
        try:
            made.step()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise ConfigError(no_zero_step(made, found)) from error
    if not bool(torch.isfinite(layer.weight).all()):
        raise ConfigError(no_zero_step(made, "its weights are no longer finite"))
