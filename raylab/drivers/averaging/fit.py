"""A run until it is done, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from raylab.drivers.averaging.course import Course, Row
from raylab.drivers.averaging.keeping import rewind
from raylab.drivers.averaging.ray_run import GroupPlan, RayRun
from raylab.drivers.averaging.rows import summary_figures
from raylab.drivers.listener import ASKED, RowListener
from raylab.drivers.result import Result
from raylab.drivers.run_place import keep
from raylab.drivers.termination import Terminated
from raylab.drivers.told import told
from raylab.records import EventWriter, RunFolder
from raylab.report import Progress

__all__ = ["AveragingFit"]


class AveragingFit:
    """One fit.

    Args:
        course: what is to be done.
        plan: with which workers.
        folder: of the run.
        config: what was asked for; written with what is resolved.
        listener: hears the rows.
        bar: shows the progress.
        events: writes TensorBoard's, if it is to.
    """

    def __init__(
        self,
        course: Course,
        plan: GroupPlan,
        folder: RunFolder,
        config: Mapping[str, Any],
        *,
        listener: RowListener,
        bar: Progress,
        events: EventWriter,
    ) -> None:
        self._course = course
        self._plan = plan
        self._folder = folder
        self._config = dict(config)
        self._listener = listener
        self._bar = bar
        self._events = events
        self._workers = plan.least

    def carry_out(self, *, resumed: bool, step: int | None) -> Result:
        """Train to the end, and keep what came out of it.

        Args:
            resumed: go on in the folder.
            step: of an older checkpoint to go on from.

        Raises:
            RaylabError: the run failed, see `raylab.AveragingTrainer.fit`.
        """
        storage = self._folder.folder.child("checkpoints")
        if resumed:
            rewind(storage, step)
        self._folder.write_config(self._config)
        storage.make()
        run = RayRun(
            self._course,
            self._plan,
            storage,
            on_rows=self._show,
            on_start=self._start,
            say=self._bar.say,
        )
        with told(self._folder), self._bar, self._events:
            found = run.carry_out()
            if found["left"]:
                raise Terminated
        weights: Mapping[str, Tensor] = found["weights"]
        self._course.model.load_state_dict(weights)
        rows: Sequence[Row] = found["rows"]
        return keep(
            self._folder,
            rows,
            weights,
            self._config,
            {
                **summary_figures(rows, found["workers"]),
                **({"stopped": ASKED} if found["stopped"] else {}),
            },
            model=self._course.model,
        )

    def _start(self, note: Mapping[str, Any]) -> None:
        """Write what was decided into the configuration, from which the run can be repeated."""
        self._listener.begin()
        self._workers = note["workers"]
        self._config.update({name: note[name] for name in ("tau", "delay", "xi")})
        self._folder.write_config(self._config)

    def _show(self, rows: Sequence[Row]) -> bool:
        done = sum(row["step"] for row in rows[-1:]) * self._workers
        self._bar.show(done, rows)
        self._events.add(rows)
        self._listener.hear(rows)
        return self._listener.asked
