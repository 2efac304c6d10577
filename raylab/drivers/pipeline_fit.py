"""A run until it is done: attempt after attempt, each from the newest checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from actors.errors import BatchError, MechanismError, PlacementError
from actors.stage_actor import Feed
from actors.supervisor import Supervisor
from raylab.drivers.checkpointing import RunCheckpoints
from raylab.drivers.pipeline_run import PipelineRun
from raylab.drivers.recovery import with_recovery
from raylab.drivers.result import Result
from raylab.drivers.run_place import keep
from raylab.errors import DataError, RaylabError, ResourceError
from raylab.records import EventWriter, RunFolder
from raylab.report import Progress

__all__ = ["PipelineFit", "told"]


class PipelineFit:
    """One fit: what its attempts share.

    Args:
        run: what is to be carried out.
        feed: what its first stage reads.
        folder: of the run.
        checkpoints: of the run.
        config: what was asked for; written with what is resolved.
        report_every: batches between two rows of metrics; 0: a row an epoch.
        open_stages: places the stages on the cluster.
        bar: shows the progress.
        events: writes TensorBoard's, if it is to.
    """

    def __init__(
        self,
        run: PipelineRun,
        feed: Feed,
        folder: RunFolder,
        checkpoints: RunCheckpoints,
        config: Mapping[str, Any],
        *,
        report_every: int,
        open_stages: Callable[[], Supervisor],
        bar: Progress,
        events: EventWriter,
    ) -> None:
        self._run = run
        self._feed = feed
        self._folder = folder
        self._checkpoints = checkpoints
        self._config = config
        self._report_every = report_every
        self._open_stages = open_stages
        self._bar = bar
        self._events = events

    def carry_out(self, most_failures: int) -> Result:
        """Train to the end, and keep what came out of it.

        Args:
            most_failures: losses of a stage, node or link to bear; -1: any number.

        Raises:
            RaylabError: the run failed, see `raylab.PipelineTrainer.fit`.
        """
        with told(), self._bar, self._events:
            model, config = with_recovery(
                self._attempt, most_failures, self._bar.say, self._checkpoints.whence
            )
        return keep(self._folder, self._run.rows, model, config, self._run.timeline)

    def _attempt(self) -> tuple[nn.Module, dict[str, Any]]:
        saved = self._checkpoints.newest()
        with self._open_stages() as supervisor:
            plan = self._run.prepare(supervisor, self._report_every)
            config = {**self._config, **self._run.resolved()}
            self._folder.write_config(config)
            self._bar.say(self._run.in_a_line())
            self._run.carry_out(supervisor, plan, self._feed, self._show, self._checkpoints, saved)
            return self._run.trained(supervisor), config

    def _show(self, done: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._bar.show(done, rows)
        self._events.add(rows)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raise the mechanism's errors as the ones that users know."""
    try:
        yield
    except PlacementError as error:
        raise ResourceError(str(error)) from error
    except BatchError as error:
        raise DataError(str(error)) from error
    except MechanismError as error:
        raise RaylabError(str(error)) from error
