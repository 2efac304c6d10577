"""A schedule of the user's own: told how many updates there are, and looked at before a run."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from raylab.algorithms.stage.settings import ScheduleFactory
from raylab.errors import ConfigError

__all__ = ["check_schedule", "told_updates"]

_Required = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


def told_updates(
    schedule: Callable[..., Any] | None, updates: Callable[[], int]
) -> ScheduleFactory | None:
    """Return a schedule that is called with an optimiser alone.

    Args:
        schedule: from an optimiser, or from an optimiser and the number of updates of the run, to
            a torch scheduler; None: there is none.
        updates: returns their number.

    Raises:
        ConfigError: from `updates`, where it is asked for.

    >>> def one_cycle(optimizer, updates):
    ...     return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=updates)
    >>> schedule = told_updates(one_cycle, lambda: 30)
    >>> schedule(torch.optim.SGD([torch.zeros(1)], lr=0.1)).total_steps
    30
    """
    if schedule is None or _required(schedule) < 2:
        return schedule
    return _Told(schedule, updates())


def check_schedule(
    schedule: ScheduleFactory | None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    updates: int | None,
) -> None:
    """Check that a schedule makes a scheduler which can be stepped once an update.

    Args:
        schedule: as `told_updates` returned it.
        optimizer: from parameters to an optimiser.
        updates: of the run; None: nobody knows.

    Raises:
        ConfigError: it does not, or its scheduler has an end before the run's.
    """
    if schedule is None:
        return
    try:
        given = optimizer([nn.Parameter(torch.zeros(4, 4))])
    except Exception:  # it may not take a matrix alone: then the run will tell
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the actors' own warn
        try:
            made: Any = schedule(given)
        except Exception as error:
            raise ConfigError(
                "schedule must make a torch scheduler of an optimiser (or of an optimiser and the "
                f"number of updates), but it raises {type(error).__name__}: {error}"
            ) from error
    if not all(callable(getattr(made, name, None)) for name in ("step", "state_dict")):
        raise ConfigError(
            "schedule must make a torch scheduler of an optimiser, but it made a "
            f"{type(made).__name__}"
        )
    if isinstance(made, ReduceLROnPlateau) or _required(made.step):
        raise ConfigError(
            "a scheduler is stepped once an update, without a figure of a test, but "
            f"{type(made).__name__}.step needs one: give a schedule over epochs, such as "
            "raylab.Schedule(kind='steps', milestones=...), or go on from a run's weights at a "
            "smaller rate"
        )
    end = getattr(made, "total_steps", None)
    if isinstance(end, int) and updates is not None and end < updates:
        raise ConfigError(
            f"a {type(made).__name__} must last to the end of the run, but it has "
            f"total_steps={end} for {updates} updates: give schedule=lambda optimizer, updates: "
            f"{type(made).__name__}(optimizer, ..., total_steps=updates)"
        )


class _Told:
    """A schedule with the number of updates. A class, because lambdas do not pickle.

    Args:
        schedule: from an optimiser and a number of updates to a scheduler.
        updates: of the run.
    """

    def __init__(self, schedule: Callable[..., Any], updates: int) -> None:
        self._schedule = schedule
        self._updates = updates

    def __call__(self, optimizer: Optimizer) -> Any:
        """Return the scheduler of an optimiser."""
        return self._schedule(optimizer, self._updates)


def _required(function: Callable[..., Any]) -> int:
    """Return how many arguments a callable cannot do without, by position."""
    try:
        known = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    return sum(each.kind in _Required and each.default is each.empty for each in known)
