"""What an averaging run is to do, in one piece that travels to the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from actors.checkpoint_plan import CheckpointPlan
from raylab.algorithms.stage.settings import OptimizerFactory, ScheduleFactory
from raylab.drivers.averaging.settings import AveragingSettings
from raylab.drivers.batches import batches_of
from raylab.drivers.schedule_check import told_updates
from raylab.errors import ConfigError
from raylab.optimizers import Schedule

__all__ = ["Course", "Row"]

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Course:
    """One run, as all its workers know it.

    Args:
        settings: its numbers.
        model: with the weights that all begin with.
        loss_fn: (outputs, labels) -> mean loss over the samples.
        optimizer: from parameters to a torch optimiser.
        schedule: over epochs, or from an optimiser to a torch scheduler; None: a constant rate.
        batches: re-iterable of (x, y).
        test: re-iterable of (x, y), or None.
        epochs: how often to go through the batches.
        evaluate_every: epochs between two tests.
        report_every: local steps between two rows of metrics; 0: a row an epoch.
        checkpoints: when they are due.
        reads_own: whether a worker reads the samples of its own batches only, see `Shards`.
        reads_own_test: whether it reads its own share only of the test batches.
        listened: whether somebody hears the rows who may ask for the run's end.
    """

    settings: AveragingSettings
    model: nn.Module
    loss_fn: Callable[..., Tensor]
    optimizer: OptimizerFactory
    schedule: Schedule | ScheduleFactory | None
    batches: Iterable[Any]
    test: Iterable[Any] | None
    epochs: int
    evaluate_every: int = 1
    report_every: int = 0
    checkpoints: CheckpointPlan = field(default_factory=CheckpointPlan)
    reads_own: bool = False
    reads_own_test: bool = False
    listened: bool = False

    def bound(self, workers: int) -> ScheduleFactory | None:
        """Return the schedule over the updates of W workers.

        Raises:
            ConfigError: one over epochs cannot know how many batches there are.
        """
        if isinstance(self.schedule, Schedule):
            return self.schedule.bind(self.steps_per_epoch(workers))
        return told_updates(self.schedule, lambda: self.steps_per_epoch(workers) * self.epochs)

    def steps(self, workers: int) -> int | None:
        """Return the local steps of a run; None: the batches have no length."""
        length = batches_of(self.batches)
        return None if length is None else -(-length // workers) * self.epochs

    def steps_per_epoch(self, workers: int) -> int:
        """Return the local steps of an epoch.

        Raises:
            ConfigError: the batches have no length.
        """
        length = batches_of(self.batches)
        if length is None:
            raise ConfigError(
                "a schedule over epochs, or over the updates of the run, must know the batches of "
                "an epoch, but these have no length: give them __len__, or a callable from an "
                "optimiser to a torch scheduler"
            )
        return -(-length // workers)
