"""A trial: one run of raylab, driven by an actor of Ray Tune whose reports are the run's rows.

The actor's placement group is the run's: bundle i is that of its actor i, and its own part is
nothing. Where the next trial asks for the same resources, this process, the group and the run's
actors serve it, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import ray.util
from ray.tune import PlacementGroupFactory, Trainable

from actors.groups.warm import WarmActors
from actors.groups.within import Within
from raylab.config import run_config
from raylab.config.objectives import Objective, objectives_of
from raylab.drivers.commands import train
from raylab.drivers.recovery import hear_losses
from raylab.drivers.tuning.driving import Driving, Outcome, Report
from raylab.drivers.tuning.figures import Figures
from raylab.errors import NonFiniteLossError
from raylab.records import RunFolder, Storage

__all__ = ["RunTrial", "TrialOrder"]


class TrialOrder(TypedDict):
    """What a trial is given: the configuration that Tune shows of it."""

    number: int
    """In the study."""
    params: dict[str, Any]
    """What was chosen, as the study keeps it."""
    train: dict[str, Any]
    """Keys of the run, its folder among them."""
    bundles: list[dict[str, float]]
    """Resources of the run's actors."""
    objectives: list[dict[str, Any]]
    family: str
    asked_at: float
    """When it was made, of `time.time`."""
    patient: bool
    """Wait at each report for word of whether to go on."""


class RunTrial(Trainable):
    """Ray Tune's class for a trial; its configuration is a `TrialOrder`."""

    _reported: dict[str, Any]
    """What was told last."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """Return the resources of all the run's actors, and nothing for its driver."""
        return PlacementGroupFactory([{}, *config["bundles"]], strategy="PACK")

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the run."""
        # A process that was there before was not started for this trial.
        began = max(config["asked_at"], _process_began())
        self._began = time.perf_counter() - max(0.0, time.time() - began)
        self._losses: queue.SimpleQueue[str] = queue.SimpleQueue()
        hear_losses(self._losses.put)
        self._driving = Driving(_around, patient=config["patient"])
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the run and begin another."""
        self._began = time.perf_counter()
        self._driving.end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the run's next report; the last one again when it has ended. A run whose every
        objective is reached has nothing more to say, and ends there.
        """
        news = self._driving.next()
        if isinstance(news, Report):
            self._reported = self._told(news)
            if not self._figures.settled:
                return self._reported
            self._driving.end()
            news = Outcome(error=None)
        return {**self._reported, "done": True, "lost": self._lost(), **self._ended(news)}

    def cleanup(self) -> None:
        """End the run, and the actors that were kept for another."""
        self._driving.close()

    def _begin(self, order: Mapping[str, Any]) -> None:
        self._figures = Figures(_objectives(order))
        self._reported = {"training_iteration": 0, **self._figures.named()}
        self._trained_before_s = 0.0
        run = _Run(order["train"])
        self._past = run.past()
        self._driving.begin(self._recall if run.finished else self._training(run), self._report)

    def _training(self, run: _Run) -> Callable[[], None]:
        return lambda: run.train(self._driving.hear)

    def _recall(self) -> None:
        """Take in the rows of a run that had ended, when nobody heard of it any more."""
        past, self._past = self._past, []
        for row in past:
            figures = self._report(row)
            if figures is not None:
                self._trained_before_s = row["time_s"]
                self._reported = self._told(Report(row=row, figures=figures))

    def _report(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return what is told of a row; the rows before the first one of a run that goes on from a
        checkpoint are taken in.
        """
        past, self._past = self._past, []
        for before in past:
            if before["step"] < row["step"]:
                self._trained_before_s = before["time_s"]
                self._figures.take(before)
        if not self._figures.take(row):
            return None
        return {**self._figures.named(), "training_iteration": self._figures.reports}

    def _told(self, report: Report) -> dict[str, Any]:
        row = report.row
        plain = {
            name: value
            for name, value in row.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        return {
            **plain,
            **report.figures,
            **self._seconds(row["time_s"]),
            "lost": self._lost(),
        }

    def _lost(self) -> str:
        """Return what the run has lost since this was asked before, a line each."""
        lines = []
        while not self._losses.empty():
            lines.append(" ".join(self._losses.get().split()))
        return "\n".join(lines)

    def _seconds(self, time_s: float) -> dict[str, float]:
        here = max(0.0, time_s - self._trained_before_s)
        return {
            "train_s": time_s,
            "start_s": max(0.0, time.perf_counter() - self._began - here),
        }

    def _ended(self, outcome: Outcome) -> dict[str, Any]:
        seconds = self._seconds(self._reported.get("time_s", 0.0))
        if isinstance(outcome.error, NonFiniteLossError):
            return {**seconds, "ended": "diverged", "error": str(outcome.error)}
        if outcome.error is not None:
            raise outcome.error
        return {**seconds, "ended": "finished", "values": self._figures.final()}


class _Run:
    """The run of a trial, in its folder.

    Args:
        keys: of the run.
    """

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self._keys = dict(keys)
        self._storage = Storage.at(Path(keys["storage"]) / keys["name"])
        self._begun = self._storage.exists("config.yaml")
        self.finished = self._begun and self._storage.exists("result.json") and not self._asked()

    def past(self) -> list[dict[str, Any]]:
        """Return the rows that it has written before."""
        return RunFolder.existing(self._storage).read_metrics() if self._begun else []

    def train(self, on_row: Any) -> None:
        """Carry it out, from its newest checkpoint if it has begun before."""
        if not self._begun:
            train(run_config(self._keys), progress=False, on_row=on_row)
            return
        before = RunFolder.existing(self._storage).read_config()
        train(run_config(before), progress=False, resume=str(self._storage), on_row=on_row)

    def _asked(self) -> bool:
        """Tell whether it was asked to end, by a scheduler that has forgotten why."""
        return json.loads(self._storage.read("result.json")).get("stopped") is not None


@contextlib.contextmanager
def _around() -> Iterator[None]:
    group = ray.util.get_current_placement_group()
    if group is None:
        raise RuntimeError("a trial must live in its placement group, but it is in none")
    with Within(group), WarmActors():
        yield


def _objectives(order: Mapping[str, Any]) -> tuple[Objective, ...]:
    return objectives_of(order["objectives"], order["family"])


def _process_began() -> float:
    """Return when this process began, of `time.time`; 0: where that is not known."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up_s = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return 0.0
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")
