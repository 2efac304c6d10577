"""Stages and messages timed on the actors that will run them; cuts that follow from it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from actors.pipeline.probes import MessageTimes, StageTimes
from actors.pipeline.supervisor import Supervisor
from raylab.algorithms.stage.delayed_stage import DelayedStage
from raylab.algorithms.stage.settings import StageSettings
from raylab.drivers.notes import Say, silence
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.planner import (
    BlockTrace,
    LinkCost,
    MessageCost,
    PipelineCosts,
    StageCost,
    best_cuts,
    one_move,
)

__all__ = [
    "as_written",
    "block_costs",
    "measured_costs",
    "measured_cuts",
    "pipeline_costs",
    "stage_inputs",
]

Tensors = tuple[Tensor, ...]
_REPEATS = 15
_MESSAGES = 9
_PART_PAUSE_S = 0.001
"""Before messages of micro-batches: there are many, so stages rest less than between batches."""
_BLOCK_REPEATS = 5
_ROUNDS = 4


def stage_inputs(
    x: Sequence[Tensor], traces: Sequence[BlockTrace], cuts: Sequence[int]
) -> list[Tensors]:
    """Return tensors of the shapes that each stage gets for one batch."""
    crossing = [
        tuple(torch.ones(t.shape, dtype=t.dtype) for t in traces[cut - 1].outputs) for cut in cuts
    ]
    return [tuple(x), *crossing]


def measured_costs(
    supervisor: Supervisor,
    x: Sequence[Tensor],
    traces: Sequence[BlockTrace],
    cuts: Sequence[int],
    say: Say = silence,
) -> PipelineCosts:
    """Time the stages as they are loaded and the links as they are wired."""
    return pipeline_costs(supervisor, stage_inputs(x, traces, cuts), say)


def pipeline_costs(
    supervisor: Supervisor, inputs: Sequence[Tensors], say: Say = silence
) -> PipelineCosts:
    """Time stages and links.

    Args:
        supervisor: of stages that are loaded and wired.
        inputs: of each stage, one batch.
        say: hears what is being done.
    """
    say(f"timing {len(inputs)} stages at once, {_REPEATS} batches")
    together = supervisor.stage_times(inputs, _REPEATS)
    alone = together
    if len(inputs) > 1:
        say(f"timing them one by one, {_BLOCK_REPEATS} batches each")
        alone = supervisor.stage_times(inputs, _BLOCK_REPEATS, together=False)
    say(f"timing messages over {len(inputs) - 1} links")
    full = supervisor.message_times(inputs[1:], _MESSAGES)
    least = [_emptied(given) for given in inputs[1:]]
    empty = supervisor.message_times(least, _MESSAGES, _PART_PAUSE_S)
    nodes = [home.node_id for home in supervisor.homes]
    return PipelineCosts(
        together=_stage_costs(together, nodes),
        alone=_stage_costs(alone, nodes),
        links=[
            LinkCost(full=_message_cost(f), empty=_message_cost(e))
            for f, e in zip(full, empty, strict=True)
        ],
        cores={home.node_id: home.cores for home in supervisor.homes},
    )


def block_costs(
    supervisor: Supervisor,
    blocks: Sequence[nn.Module],
    x: Sequence[Tensor],
    traces: Sequence[BlockTrace],
    settings: PipelineSettings,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
) -> list[list[float]]:
    """Return the time of every block on every stage's device, in seconds; all stages are busy."""
    device = "cuda" if supervisor.gpus else "cpu"
    rules = [
        functools.partial(
            DelayedStage,
            nn.Sequential(block),
            StageSettings(
                # The first block alone needs no gradient at its input; none of them has the loss.
                stage=min(position, 1),
                stages=3,
                delay=0,
                accumulate=settings.accumulate,
                precision=settings.precision,
                protect_inputs=trace.writes_input,
                device=device,
            ),
            optimizer=optimizer,
        )
        for position, (block, trace) in enumerate(zip(blocks, traces, strict=True))
    ]
    inputs = stage_inputs(x, traces, range(1, len(blocks)))
    times = supervisor.block_times(rules, inputs, _BLOCK_REPEATS)
    return [[each.total_s for each in stage] for stage in times]


def measured_cuts(
    costs: Sequence[Sequence[float]], time_stages: Callable[[Sequence[int]], Sequence[float]]
) -> list[int]:
    """Return the cuts with the fastest slowest stage that was measured.

    The optimal cuts of the blocks' times are tried first, then one block is moved at a time for as
    long as the measured times say that it helps.

    Args:
        costs: `costs[k][i]` of block i on stage k, in seconds.
        time_stages: from cuts to the time of each whole stage, all running at once.
    """
    cuts: list[int] | None = best_cuts(costs)
    tried: dict[tuple[int, ...], float] = {}
    for _ in range(_ROUNDS):
        if cuts is None or tuple(cuts) in tried:
            break
        times = time_stages(cuts)
        tried[tuple(cuts)] = max(times)
        cuts = one_move(costs, cuts, times)
    return list(min(tried.items(), key=operator.itemgetter(1))[0])


def as_written(costs: PipelineCosts) -> dict[str, Any]:
    """Return the measurements as a configuration keeps them, in seconds."""
    return {
        "stage_forward_s": [round(stage.forward_s, 6) for stage in costs.together],
        "stage_backward_s": [round(stage.backward_s, 6) for stage in costs.together],
        "message_s": [round(each, 6) for each in costs.message_s],
        "message_handling_s": [
            round(link.full.put_s + link.full.take_s, 6) for link in costs.links
        ],
    }


def _emptied(tensors: Tensors) -> Tensors:
    return tuple(t.new_zeros(1) for t in tensors)


def _stage_costs(times: Sequence[StageTimes], nodes: Sequence[str]) -> list[StageCost]:
    return [
        StageCost(forward_s=t.forward_s, backward_s=t.backward_s, cpu_s=t.cpu_s, node=node)
        for t, node in zip(times, nodes, strict=True)
    ]


def _message_cost(times: MessageTimes) -> MessageCost:
    return MessageCost(
        latency_s=times.latency_s, put_s=times.put_s, take_s=times.take_s, cpu_s=times.cpu_s
    )
