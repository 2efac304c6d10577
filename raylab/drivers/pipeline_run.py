"""One run of a pipeline: stages loaded, wired and watched; what they report, kept."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.train import Checkpoint
from torch import Tensor, nn
from torch.optim import Optimizer

from actors.program import StageProgram
from actors.stage_actor import Feed
from actors.supervisor import Look, Supervisor
from actors.wiring import links
from raylab.algorithms.cut_features import CutFeatures
from raylab.algorithms.stage_rules import stage_rule
from raylab.algorithms.stage_settings import ScheduleFactory
from raylab.drivers.checkpointing import RunCheckpoints
from raylab.drivers.measure import (
    as_written,
    block_costs,
    measured_costs,
    measured_cuts,
    stage_inputs,
)
from raylab.drivers.network import Network
from raylab.drivers.predict import predicted
from raylab.drivers.programs import programs, recheck_ages, stage_settings
from raylab.drivers.result import Result
from raylab.drivers.settings import PipelineSettings
from raylab.errors import ModelError
from raylab.planner import BlockTrace, PipelineCosts, best_cuts
from raylab.records import RowMerger, RunFolder, SavedCheckpoint, timeline_rows
from raylab.report import RunRecord
from raylab.report.page import report_page

__all__ = ["PipelineRun", "keep"]

_REPEATS = 5
"""Of whole stages, for each cut that balance="measured" tries."""


class PipelineRun:
    """One run: from checked settings to rows.

    Args:
        settings: the numbers.
        network: the model as a chain.
        cuts: first blocks of stages 1..K-1.
        traces: of the chain's blocks.
        loss_fn: (outputs, labels) -> loss.
        optimizer: from a stage's parameters to its optimiser.
        schedule: from an optimiser to its scheduler.
        crossing: from cuts to the features above each stage, where the method needs to know them.
        resumable: whether checkpoints will be saved.
        rows: of the run so far, where it goes on.
        timeline: of the run so far.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        network: Network,
        cuts: Sequence[int],
        traces: Sequence[BlockTrace],
        loss_fn: Callable[..., Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: ScheduleFactory | None,
        crossing: Callable[[Sequence[int]], Sequence[CutFeatures | None]],
        *,
        resumable: bool = False,
        rows: Sequence[dict[str, Any]] = (),
        timeline: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.rows = list(rows)
        self._resumable = resumable
        self._settings = settings
        self._network = network
        self._traces = traces
        self._crossing_at = crossing
        self._cut(cuts)
        self._loss_fn = loss_fn
        self._optimizer = optimizer
        self._schedule = schedule
        self._link_delays = settings.link_delays()
        self._measured: dict[str, Any] = {}
        self.expected_samples_per_s: float | None = None
        """What the measurements before the run predict, if there were any."""
        self.timeline = list(timeline)
        """What the stages did when, in the first batches: rows of timeline.parquet."""

    def prepare(
        self, supervisor: Supervisor, x: Sequence[Tensor], report_every: int
    ) -> list[StageProgram]:
        """Load and wire the stages, measuring first where cuts or delays depend on it."""
        # Once: a run that goes on after a loss keeps what it has begun with.
        if self.expected_samples_per_s is None:
            if self._settings.balance == "measured":
                self.balance(supervisor, x)
            if self._settings.delay == "auto" or self._settings.balance == "measured":
                self._resolve(self.costs(supervisor, x), x)
        return self._ready(supervisor, report_every)

    def costs(self, supervisor: Supervisor, x: Sequence[Tensor]) -> PipelineCosts:
        """Time the stages and their links."""
        self._ready(supervisor, 0)
        return measured_costs(supervisor, x, self._traces, self.cuts)

    def balance(self, supervisor: Supervisor, x: Sequence[Tensor]) -> None:
        """Cut by times measured on the stages."""
        blocks = block_costs(
            supervisor, self._network.blocks, x, self._traces, self._settings, self._optimizer
        )
        first = best_cuts(blocks)

        def time_stages(cuts: Sequence[int]) -> list[float]:
            try:
                self._cut(cuts)
            except ModelError:  # a move that separates shared weights
                if list(cuts) == first:
                    raise
                return [math.inf] * self._settings.count
            self._load(supervisor, 0)
            times = supervisor.stage_times(stage_inputs(x, self._traces, cuts), _REPEATS)
            return [each.total_s for each in times]

        self._cut(measured_cuts(blocks, time_stages))

    def carry_out(
        self,
        supervisor: Supervisor,
        plan: Sequence[StageProgram],
        feed: Feed,
        show: Callable[[int, Sequence[Mapping[str, Any]]], None],
        checkpoints: RunCheckpoints,
        saved: SavedCheckpoint | None,
    ) -> list[dict[str, Any]]:
        """Run the stages from `saved` to their end; return the rows, with those before it."""
        merger = RowMerger(self._settings.count)
        done = 0 if saved is None else saved.step
        self.rows = [row for row in self.rows if row["step"] <= done]
        self.timeline = [span for span in self.timeline if span["batch"] < done]

        def watch(look: Look) -> None:
            new = merger.add(look.rows)
            self.rows.extend(new)
            self.timeline.extend(timeline_rows(look.rows))
            checkpoints.took(look.written, self.rows, self.timeline)
            show(look.batches, new)

        every = self._settings.sigma_every * self._settings.accumulate
        if every:
            feed = replace(feed, recheck_every=every, recheck_ages=recheck_ages(plan))
        keeping = checkpoints.begin(self.cuts, self._link_delays, saved)
        supervisor.run(plan, feed, watch, keeping)
        return self.rows

    def resolved(self) -> dict[str, Any]:
        """Return what was decided: with it in place of "auto" and K the run repeats."""
        found: dict[str, Any] = {"stages": self.cuts or 1, "balance": "counted"}
        if self._settings.rule.delayed:
            found["delay"] = self._link_delays
        if self._measured:
            found["measured"] = self._measured
        return found

    def _load(self, supervisor: Supervisor, report_every: int) -> list[StageProgram]:
        plan = programs(self._settings, self._link_delays, report_every)
        bounds = [0, *self.cuts, len(self._traces)]
        device = "cuda" if supervisor.gpus else "cpu"
        supervisor.load(
            [
                functools.partial(
                    stage_rule(self._settings.rule),
                    module,
                    stage_settings(
                        self._settings,
                        program,
                        protect_inputs=any(
                            trace.writes_input for trace in self._traces[bounds[k] : bounds[k + 1]]
                        ),
                        device=device,
                        cut=self._crossing[k],
                        resumable=self._resumable,
                    ),
                    optimizer=self._optimizer,
                    schedule=self._schedule,
                    loss_fn=self._loss_fn if program.last or program.labelled else None,
                )
                for k, (module, program) in enumerate(zip(self._modules, plan, strict=True))
            ]
        )
        return plan

    def _cut(self, cuts: Sequence[int]) -> None:
        self._network.check_cuts(cuts)
        self.cuts = list(cuts)
        self._modules = self._network.stages(cuts)
        self._crossing = self._crossing_at(cuts)

    def _ready(self, supervisor: Supervisor, report_every: int) -> list[StageProgram]:
        plan = self._load(supervisor, report_every)
        window = self._settings.accumulate * self._settings.parts
        supervisor.wire(links(plan, window), self._settings.wire, self._settings.carrier)
        return plan

    def _resolve(self, costs: PipelineCosts, x: Sequence[Tensor]) -> None:
        """Take the smallest delays that hide the messages; note what to expect."""
        plan = predicted(self._settings, costs)
        if self._settings.delay == "auto":
            self._link_delays = list(plan.delays or [])
            self._settings = replace(self._settings, delay=tuple(plan.delays or []))
        self.expected_samples_per_s = x[0].shape[0] / plan.period_s
        self._measured = {
            **as_written(costs),
            "balance": self._settings.balance,
            "predicted_samples_per_s": round(self.expected_samples_per_s, 3),
        }


def keep(
    folder: RunFolder,
    rows: Sequence[Mapping[str, Any]],
    model: nn.Module,
    config: Mapping[str, Any],
    timeline: Sequence[Mapping[str, Any]] = (),
) -> Result:
    """Write rows, weights, summary and report into the run's folder; return the result."""
    table = folder.write_metrics(rows)
    folder.write_timeline(timeline)
    weights = folder.write_weights(model.state_dict())
    gradients = sum(sum(row["stage_gradients"]) for row in rows)
    late = sum(row["staleness_mean"] * sum(row["stage_gradients"]) for row in rows)
    trained_s = sum(row["stage_trained_s"][-1] for row in rows)
    last = dict(rows[-1])
    summary = folder.write_result(
        {
            "kind": "pipeline",
            "config": dict(config),
            "seed": config.get("seed"),
            "metrics": last,
            "epochs": last["epoch"],
            "steps": last["step"],
            "time_s": last["time_s"],
            "samples_per_s": sum(row["samples"] or 0 for row in rows) / max(trained_s, 1e-12),
            "staleness_mean": late / max(1, gradients),
            "path": folder.folder.uri,
        }
    )
    record = RunRecord(
        name=folder.path.name, config=config, rows=rows, result=summary, timeline=timeline
    )
    folder.write_report(report_page([record]))
    return Result(
        metrics=last,
        table=table,
        model=model,
        path=folder.path,
        filesystem=folder.folder.filesystem,
        checkpoint=Checkpoint(weights.path, filesystem=weights.filesystem),
        summary=summary,
    )
