"""The product's own loops under a modelled clock: how long a run takes, without running it.

K `StageLoop`s exchange messages that carry times instead of tensors. Each stage waits where the
loop waits, so the order of every method, its flushes, credits and lock step are what they are in a
run; what an operation or a message takes comes from `PipelineCosts`. A stage does one thing at a
time: computing, putting and taking. A message that a stage waits for is there one latency after
its put began.

Delays alone give a bound in closed form, `raylab.planner.predicted_period_s`. It is reached by long
pipelines with free handling: a stall of a stage lengthens its own period too, so that K stages of
link delay 1 show 2 (K-1)/K latencies and not 2.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.pipeline.program import Backward, Box, Forward, Instruction, PassToken, StageProgram
from actors.pipeline.stage import StageLoop
from actors.pipeline.wiring import links
from actors.wires.messages import Kind, Message
from raylab.drivers.pipeline.programs import programs
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.planner import LinkCost, PipelineCosts, response_factor

__all__ = ["rehearsed_period_s"]

_BATCHES = 24
"""Over how many a period is taken, at least."""
_ROUNDS = 8
_SETTLED = 0.05
"""How often, and how exactly, it is looked for how many stages compute at a time, and how much
longer handling takes."""


def rehearsed_period_s(
    settings: PipelineSettings, link_delays: Sequence[int | None], costs: PipelineCosts
) -> float:
    """Return the time between two batches in a full pipeline, in seconds.

    Stages that share cores slow each other down, the more the more of them compute at a time, which
    in turn follows from the period; so does how long the handling of messages waits for a core that
    handles others. And no node can do more work than it has cores.

    Args:
        settings: of the run.
        link_delays: of each link; None: until the window ends.
        costs: of stages and links.
    """
    plan = programs(settings, link_delays, 0)
    # Whole windows, so that a flush counts once in each, and a multiple of K batches, after which
    # the stalls of a pipeline with link delay 1 repeat.
    fill = settings.accumulate * (4 + 2 * settings.count // settings.accumulate)
    cycle = settings.accumulate * settings.count
    batches = fill + cycle * math.ceil(_BATCHES / cycle)
    # Batches that are late at the lower stages when the upper ones have theirs.
    late = 0 if settings.rule.flush else max(p.span or p.delay or 0 for p in plan)
    busy = float(settings.count) if settings.rule.delayed else 1.0
    slowed = dict.fromkeys(costs.cores, 1.0)
    for _ in range(_ROUNDS):
        times = costs.at(busy)
        rehearsal = _Rehearsal(settings, plan, times, _contended(costs, slowed), batches + late)
        rehearsal.run()
        period = rehearsal.period_s(fill, batches)
        handling = _handling_s(rehearsal, costs)
        if period <= 0:
            break
        alike = costs.alone == costs.together
        active = busy if alike else sum(f + b for f, b in times) / period
        now = {
            node: response_factor(cores, handling[node] / cores / period)
            for node, cores in costs.cores.items()
        }
        if _close(active, busy) and all(_close(now[node], slowed[node]) for node in now):
            break
        busy = (busy + active) / 2
        slowed = {node: (slowed[node] + now[node]) / 2 for node in now}
    for node, cores in costs.cores.items():
        here = [k for k, stage in enumerate(costs.alone) if stage.node == node]
        computing = sum(costs.alone[k].cpu_s * rehearsal.repeats(k) for k in here)
        period = max(period, (computing + handling[node]) / cores)
    return period


def _contended(costs: PipelineCosts, slowed: Mapping[str, float]) -> list[LinkCost]:
    """Return the links where each node's handling takes so many times longer: a link's slower end
    counts.
    """
    nodes = [stage.node for stage in costs.alone]
    return [
        link.slowed(max(slowed.get(node, 1.0) for node in ends))
        for link, ends in zip(costs.links, itertools.pairwise(nodes), strict=True)
    ]


def _handling_s(rehearsal: _Rehearsal, costs: PipelineCosts) -> dict[str, float]:
    """Return the processor time of each node for the messages of one batch, in seconds."""
    stages = rehearsal.handling_cpu_s()
    return {
        node: sum(s for s, stage in zip(stages, costs.alone, strict=True) if stage.node == node)
        / rehearsal.batches
        for node in costs.cores
    }


def _close(now: float, before: float) -> bool:
    return abs(now - before) < _SETTLED


@dataclass(slots=True)
class _Wire:
    """Messages of one link: when each began to be put; and when credits come back."""

    messages: deque[tuple[float, Message]] = field(default_factory=deque)
    credits: deque[float] = field(default_factory=deque)


@dataclass(slots=True)
class _Stage:
    program: StageProgram
    loop: StageLoop
    now_s: float = 0.0
    todo: deque[Instruction] = field(default_factory=deque)
    labels: deque[Message] = field(default_factory=deque)
    ends: list[float] = field(default_factory=list)
    """When each batch's backward was computed."""


class _Rehearsal:
    def __init__(
        self,
        settings: PipelineSettings,
        plan: Sequence[StageProgram],
        times: Sequence[tuple[float, float]],
        costs: Sequence[LinkCost],
        batches: int,
    ) -> None:
        self._times = times
        self._costs = costs
        self._replay = settings.rule.replay or settings.recompute
        self._stages = [_Stage(program, StageLoop(program)) for program in plan]
        self._wires: dict[tuple[str, int], _Wire] = {}
        """By box and the stage whose inbox it is."""
        for link in links(plan, settings.accumulate * settings.parts):
            if link.box != "labels":
                self._wires[link.box, link.target] = _Wire(credits=deque([0.0] * link.capacity))
        parts = settings.parts
        self._units = deque(
            Message(Kind.BATCH, batch, part=part, parts=parts, share=1 / parts)
            for batch in range(batches)
            for part in range(parts)
        )
        for stage in self._stages:
            stage.labels.extend(self._units)
        self.batches = batches
        self._handling_s = [0.0] * len(plan)

    def handling_cpu_s(self) -> list[float]:
        """Return the processor time that each stage has spent on messages, in seconds."""
        return self._handling_s

    def run(self) -> None:
        """Run until the batches are used up."""
        for stage in self._stages:
            stage.todo.extend(stage.loop.start())
        moved = True
        while moved:
            moved = sum(self._advance(stage) for stage in self._stages) > 0

    def period_s(self, first: int, last: int) -> float:
        """Return the mean time between two of the batches `first` to `last` where it is longest.

        That is at the slowest stage: those above still live on what came fast at the start.
        """
        return max(
            (stage.ends[last - 1] - stage.ends[first - 1]) / (last - first)
            for stage in self._stages
        )

    def repeats(self, k: int) -> float:
        """Return stage k's work on a batch over that without a replay."""
        forward_s, backward_s = self._times[k]
        whole = forward_s + backward_s
        return 1.0 + self._again_s(k) / whole if whole > 0 else 1.0

    def _again_s(self, k: int) -> float:
        return self._times[k][0] if self._replay and self._stages[k].program.delay else 0.0

    def _advance(self, stage: _Stage) -> bool:
        """Do all that `stage` can do before it must wait for another."""
        moved = False
        while True:
            while stage.todo:
                if not self._carry_out(stage, stage.todo[0]):
                    return moved
                stage.todo.popleft()
                moved = True
            message = self._take(stage, stage.loop.awaits)
            if stage.loop.awaits is None or message is None:
                return moved
            stage.todo.extend(stage.loop.arrived(stage.loop.awaits, message))
            moved = True

    def _carry_out(self, stage: _Stage, instruction: Instruction) -> bool:
        forward_s, backward_s = self._times[stage.program.stage]
        if isinstance(instruction, Forward):
            unit = instruction.unit
            return self._send(stage, "features", Message.of(unit, ()), forward_s * unit.share)
        if isinstance(instruction, Backward):
            unit = instruction.unit
            work_s = (backward_s + self._again_s(stage.program.stage)) * unit.share
            if unit.part + 1 == unit.parts:
                stage.ends.append(stage.now_s + work_s)
            return self._send(stage, "gradients", Message.of(unit, ()), work_s)
        if isinstance(instruction, PassToken):
            box: Box = "gradients" if instruction.towards == "below" else "features"
            return self._send(stage, box, Message(Kind.TOKEN, instruction.tick), 0.0)
        # The time of an update is in the backward's.
        return True

    def _send(self, stage: _Stage, box: Box, message: Message, work_s: float) -> bool:
        """Compute, then send; False if there is no credit yet."""
        here = stage.program.stage
        there = here + 1 if box == "features" else here - 1
        wire = self._wires.get((box, there))
        if wire is None:
            stage.now_s += work_s
            return True
        if not wire.credits:
            return False
        stage.now_s = max(stage.now_s, wire.credits.popleft()) + work_s
        wire.messages.append((stage.now_s, message))
        cost = self._costs[min(here, there)].of(_share(message))
        stage.now_s += cost.put_s
        self._handling_s[here] += cost.cpu_s / 2
        return True

    def _take(self, stage: _Stage, box: Box | None) -> Message | None:
        here = stage.program.stage
        if box == "labels" or (box == "features" and here == 0):
            # A batch of the source; its labels overtake the features, so they are never awaited.
            waiting = stage.labels if box == "labels" else self._units
            if waiting and self._costs:
                label = self._costs[min(here, len(self._costs) - 1)].empty
                stage.now_s += label.take_s if box == "labels" else label.put_s
                self._handling_s[here] += label.cpu_s / 2
            return waiting.popleft() if waiting else None
        if box is None:
            return None
        wire = self._wires.get((box, here))
        if wire is None or not wire.messages:
            return None
        sent_s, message = wire.messages.popleft()
        link = self._costs[here - 1 if box == "features" else here]
        cost = link.of(_share(message))
        stage.now_s = max(stage.now_s + cost.take_s, sent_s + cost.latency_s)
        self._handling_s[here] += cost.cpu_s / 2
        wire.credits.append(stage.now_s + link.empty.latency_s)
        return message


def _share(message: Message) -> float:
    return message.share if message.kind is Kind.BATCH else 0.0
