"""One run of a pipeline: stages loaded, wired and watched; what they report."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from actors.pipeline.program import StageProgram
from actors.pipeline.stage_actor import Feed
from actors.pipeline.supervisor import Look, Supervisor
from actors.pipeline.wiring import links
from raylab.algorithms.stage.rules import stage_rule
from raylab.algorithms.stage.settings import ScheduleFactory
from raylab.drivers.listener import RowListener
from raylab.drivers.notes import Say, silence
from raylab.drivers.pipeline.checkpointing import RunCheckpoints
from raylab.drivers.pipeline.measure import (
    as_written,
    block_costs,
    measured_costs,
    measured_cuts,
    stage_inputs,
)
from raylab.drivers.pipeline.plan import in_a_line
from raylab.drivers.pipeline.predict import predicted
from raylab.drivers.pipeline.programs import programs, recheck_ages, stage_settings
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.drivers.pipeline.traced_chain import TracedChain
from raylab.drivers.termination import LastCheckpoint
from raylab.errors import ModelError
from raylab.planner import PipelineCosts, best_cuts
from raylab.records import RowMerger, SavedCheckpoint, timeline_rows

__all__ = ["PipelineRun"]

_REPEATS = 5
"""Of whole stages, for each cut that balance="measured" tries."""


class PipelineRun:
    """One run: from checked settings to rows.

    Args:
        settings: the numbers.
        chain: the model, and what its blocks do to a batch.
        cuts: first blocks of stages 1..K-1.
        loss_fn: (outputs, labels) -> loss.
        optimizer: from a stage's parameters to its optimiser.
        schedule: from an optimiser to its scheduler.
        resumable: whether checkpoints will be saved.
        rows: of the run so far, where it goes on.
        timeline: of the run so far.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        chain: TracedChain,
        cuts: Sequence[int],
        *,
        loss_fn: Callable[..., Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: ScheduleFactory | None = None,
        resumable: bool = False,
        rows: Sequence[dict[str, Any]] = (),
        timeline: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.rows = list(rows)
        self._resumable = resumable
        self._settings = settings
        self._chain = chain
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

    def prepare(self, supervisor: Supervisor, report_every: int) -> list[StageProgram]:
        """Load and wire the stages, measuring first where cuts or delays depend on it."""
        # Once: a run that goes on after a loss keeps what it has begun with.
        if self.expected_samples_per_s is None:
            if self._settings.balance == "measured":
                self.balance(supervisor)
            if self._settings.delay == "auto" or self._settings.balance == "measured":
                self._resolve(self.costs(supervisor))
        return self._ready(supervisor, report_every)

    def costs(self, supervisor: Supervisor, say: Say = silence) -> PipelineCosts:
        """Time the stages and their links; `say` hears what is being done."""
        self._ready(supervisor, 0)
        return measured_costs(supervisor, self._chain.x, self._chain.traces, self.cuts, say)

    def balance(self, supervisor: Supervisor) -> None:
        """Cut by times measured on the stages."""
        chain = self._chain
        blocks = block_costs(
            supervisor,
            chain.network.blocks,
            chain.x,
            chain.traces,
            self._settings,
            self._optimizer,
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
            times = supervisor.stage_times(stage_inputs(chain.x, chain.traces, cuts), _REPEATS)
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
        listener: RowListener,
    ) -> None:
        """Run the stages from `saved` to their end, or until the listener asks for it; the rows
        are in `rows`, with those before.
        """
        merger = RowMerger(self._settings.count)
        done = 0 if saved is None else saved.step
        self.rows = [row for row in self.rows if row["step"] <= done]
        self.timeline = [span for span in self.timeline if span["batch"] < done]
        listener.begin()

        def watch(look: Look) -> bool:
            new = merger.add(look.rows)
            self.rows.extend(new)
            self.timeline.extend(timeline_rows(look.rows))
            checkpoints.took(look.written, self.rows, self.timeline)
            show(look.batches, new)
            listener.hear(new)
            last.look()
            # A run that has lost its rows with a stage makes one before it ends.
            return listener.asked and bool(self.rows)

        every = self._settings.sigma_every * self._settings.accumulate
        if every:
            feed = replace(feed, recheck_every=every, recheck_ages=recheck_ages(plan))
        keeping = checkpoints.begin(self.cuts, self._link_delays, saved)
        last = LastCheckpoint(supervisor.save, lambda: checkpoints.committed, on=feed.saves)
        with last:
            supervisor.run(plan, feed, watch, keeping)

    def trained(self, supervisor: Supervisor) -> nn.Module:
        """Return the model with the weights that the stages have."""
        return self._chain.network.trained(supervisor.states())

    def in_a_line(self, supervisor: Supervisor) -> str:
        """Return what to say of the cut, and of the machines that the stages are on."""
        cores = None
        if not supervisor.gpus:
            by_node = {home.node_id: home.cores for home in supervisor.homes}
            cores = sum(by_node.values())
        return in_a_line(self._settings, self.cuts, self._chain, self.expected_samples_per_s, cores)

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
        traces = self._chain.traces
        bounds = [0, *self.cuts, len(traces)]
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
                            trace.writes_input for trace in traces[bounds[k] : bounds[k + 1]]
                        ),
                        writes_weights=any(
                            trace.writes_weights for trace in traces[bounds[k] : bounds[k + 1]]
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
        self._chain.network.check_cuts(cuts)
        self.cuts = list(cuts)
        self._modules = self._chain.network.stages(cuts)
        self._crossing = self._chain.crossing(self._settings.rule, cuts)

    def _ready(self, supervisor: Supervisor, report_every: int) -> list[StageProgram]:
        plan = self._load(supervisor, report_every)
        window = self._settings.accumulate * self._settings.parts
        supervisor.wire(links(plan, window), self._settings.wire, self._settings.carrier)
        return plan

    def _resolve(self, costs: PipelineCosts) -> None:
        """Take the smallest delays that hide the messages; note what to expect."""
        plan = predicted(self._settings, costs)
        if self._settings.delay == "auto":
            self._link_delays = list(plan.delays or [])
            self._settings = replace(self._settings, delay=tuple(plan.delays or []))
        self.expected_samples_per_s = self._chain.x[0].shape[0] / plan.period_s
        self._measured = {
            **as_written(costs),
            "balance": self._settings.balance,
            "predicted_samples_per_s": round(self.expected_samples_per_s, 3),
        }
