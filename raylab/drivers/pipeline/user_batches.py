"""The user's batches: looked at before any actor starts, counted, and handed to the first stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import BatchError
from actors.pipeline.batch import as_tensors
from actors.pipeline.stage_actor import Feed
from raylab.algorithms.stage.loss_terms import loss_terms
from raylab.algorithms.stage.settings import OptimizerFactory, ScheduleFactory
from raylab.drivers.batches import batches_of, check_states, first_of, fresh
from raylab.drivers.pipeline.settings import PipelineSettings, at_least
from raylab.drivers.schedule_check import check_schedule, told_updates
from raylab.drivers.travelling import check_batches_travel
from raylab.errors import ConfigError, DataError
from raylab.optimizers import Schedule

__all__ = ["bound", "feed_of", "first_batch"]

_Tensors = tuple[Tensor, ...]


def feed_of(
    batches: Iterable[Any],
    test: Iterable[Any] | None,
    settings: PipelineSettings,
    checkpoints: CheckpointPlan,
    *,
    loss_fn: Callable[..., Tensor],
    epochs: int,
    evaluate_every: int,
) -> Feed:
    """Return what the first stage reads.

    Args:
        batches: re-iterable of (x, y), to train with.
        test: re-iterable of (x, y), or None.
        settings: of the run.
        checkpoints: when they are due.
        loss_fn: (outputs, labels) -> loss.
        epochs: how often to go through the batches.
        evaluate_every: epochs between two tests.

    Raises:
        ConfigError: a number is out of range.
        DataError: a test batch is not one.
    """
    at_least("epochs", epochs, 1)
    at_least("evaluate_every", evaluate_every, 1)
    if test is not None:
        first_batch(test, "test")
    if checkpoints.on:
        check_states(batches=batches, test=test)
    return Feed(
        train=fresh(batches),
        test=fresh(test),
        epochs=epochs,
        parts=settings.parts,
        loss_shares=loss_terms(loss_fn).shares if settings.parts > 1 else None,
        evaluate_every=evaluate_every,
        seed=settings.seed,
        checkpoints=checkpoints,
    )


def first_batch(batches: Iterable[Any], name: str = "batches") -> tuple[_Tensors, _Tensors]:
    """Return x and y of the first batch.

    Args:
        batches: re-iterable of (x, y); left as it is.
        name: of the argument, for errors.

    Raises:
        DataError: there is none, it is not one, there can be no second time, or the batches
            cannot be sent to the first stage.
    """
    try:
        first = as_tensors(first_of(batches), "the first batch")
    except BatchError as error:
        raise DataError(str(error)) from error
    check_batches_travel(name, batches)
    return first


def bound(
    schedule: Schedule | ScheduleFactory | None,
    batches: Iterable[Any],
    accumulate: int,
    *,
    epochs: int,
    optimizer: OptimizerFactory,
) -> ScheduleFactory | None:
    """Return a schedule over updates.

    Args:
        schedule: over epochs, or over updates already.
        batches: of an epoch.
        accumulate: M, batches per update.
        epochs: of the run.
        optimizer: that it moves.

    Raises:
        ConfigError: it must know how many batches there are, or makes no scheduler for updates.
    """
    length = batches_of(batches)

    def known() -> int:
        if length is None:
            raise ConfigError(
                "a schedule over epochs, or over the updates of the run, must know the batches of "
                "an epoch, but these have no length: give them __len__, or a callable from an "
                "optimiser to a torch scheduler"
            )
        return length

    if isinstance(schedule, Schedule):
        return schedule.bind(known() / accumulate)
    updates = None if length is None else -(-length * epochs // accumulate)
    made = told_updates(schedule, lambda: -(-known() * epochs // accumulate))
    check_schedule(made, optimizer, updates)
    return made
