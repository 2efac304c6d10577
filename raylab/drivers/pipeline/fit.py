"""A run until it is done: attempt after attempt, each from the newest checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from actors.pipeline.stage_actor import Feed
from actors.pipeline.supervisor import Supervisor
from raylab.drivers.listener import ASKED, RowListener
from raylab.drivers.niceness import tell_of_niceness
from raylab.drivers.pipeline.checkpointing import RunCheckpoints
from raylab.drivers.pipeline.run import PipelineRun
from raylab.drivers.recovery import with_recovery
from raylab.drivers.result import Result
from raylab.drivers.run_place import keep
from raylab.drivers.told import told
from raylab.records import EventWriter, RunFolder
from raylab.report import Progress

__all__ = ["PipelineFit"]


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
        listener: hears the rows.
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
        listener: RowListener,
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
        self._listener = listener
        self._bar = bar
        self._events = events

    def carry_out(self, most_failures: int) -> Result:
        """Train to the end, and keep what came out of it.

        Args:
            most_failures: losses of a stage, node or link to bear; -1: any number.

        Raises:
            RaylabError: the run failed, see `raylab.PipelineTrainer.fit`.
        """
        with told(self._folder), self._bar, self._events:
            model, config = with_recovery(
                self._attempt, most_failures, self._bar.say, self._checkpoints.whence
            )
        return keep(
            self._folder,
            self._run.rows,
            model.state_dict(),
            config,
            _figures(self._run.rows) | self._stopped(),
            timeline=self._run.timeline,
            model=model,
        )

    def _stopped(self) -> dict[str, str]:
        ended = self._run.rows[-1]["epoch"] == self._feed.epochs
        return {"stopped": ASKED} if self._listener.asked and not ended else {}

    def _attempt(self) -> tuple[nn.Module, dict[str, Any]]:
        saved = self._checkpoints.newest()
        with self._open_stages() as supervisor:
            plan = self._run.prepare(supervisor, self._report_every)
            config = {**self._config, **self._run.resolved()}
            self._folder.write_config(config)
            self._bar.say(self._run.in_a_line(supervisor))
            tell_of_niceness((home.niceness for home in supervisor.homes), self._bar.say)
            self._run.carry_out(
                *(supervisor, plan, self._feed, self._show, self._checkpoints, saved),
                self._listener,
            )
            return self._run.trained(supervisor), config

    def _show(self, done: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._bar.show(done, rows)
        self._events.add(rows)


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the summary of a pipeline's run says beside its last row."""
    gradients = sum(sum(row["stage_gradients"]) for row in rows)
    late = sum(row["staleness_mean"] * sum(row["stage_gradients"]) for row in rows)
    trained_s = sum(row["stage_trained_s"][-1] for row in rows)
    return {
        "kind": "pipeline",
        "samples_per_s": sum(row["samples"] or 0 for row in rows) / max(trained_s, 1e-12),
        "staleness_mean": late / max(1, gradients),
    }
