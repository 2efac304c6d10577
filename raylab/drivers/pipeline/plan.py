"""The plan of a pipeline: where its chain is cut, and what every method would give there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raylab.algorithms.stage.layerwise import watch
from raylab.drivers.notes import Say, silence
from raylab.drivers.pipeline.predict import (
    MethodPlan,
    best,
    held_by_stages,
    predict_methods,
    predicted,
)
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.drivers.pipeline.traced_chain import TracedChain
from raylab.planner import (
    BlockMemory,
    BlockTrace,
    LinkCost,
    PipelineCosts,
    StageCost,
    balanced_cuts,
    best_cuts,
    block_memory,
    memory_matrix,
    stage_bytes,
    stage_costs,
)

__all__ = ["first_cuts", "in_a_line", "plan_of"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


def first_cuts(
    settings: PipelineSettings, chain: TracedChain, optimizer: OptimizerFactory
) -> list[int]:
    """Return the cuts that can be known before any actor starts.

    Those of `balance="measured"` are the counted ones until it has measured.
    """
    if isinstance(settings.stages, tuple):
        return list(settings.stages)
    cuts = balanced_cuts([trace.cost for trace in chain.traces], settings.stages)
    if settings.balance == "memory":
        memory = block_memory(chain.network.blocks, chain.traces, chain.x)
        holds = held_by_stages(settings, settings.link_delays(), optimizer_copies(optimizer))
        cuts = best_cuts(*memory_matrix(memory, holds))
    return cuts


def optimizer_copies(optimizer: OptimizerFactory) -> float:
    """Return the numbers that an optimiser keeps per parameter: 1 for momentum, 2 for Adam."""
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.grad = torch.zeros_like(layer.weight)
    made = optimizer(layer.parameters())
    watch(made, layer)
    made.step()
    state = (value for each in made.state.values() for value in each.values())
    kept = sum(value.numel() for value in state if isinstance(value, Tensor) and value.ndim)
    return kept / layer.weight.numel()


def plan_of(
    settings: PipelineSettings,
    chain: TracedChain,
    cuts: Sequence[int],
    optimizer: OptimizerFactory,
    costs: PipelineCosts | None = None,
    *,
    say: Say = silence,
) -> dict[str, Any]:
    """Return the plan as a mapping of plain values.

    Args:
        settings: as they were asked for.
        chain: the model, and what its blocks do to a batch.
        cuts: first blocks of stages 1..K-1.
        optimizer: from parameters to an optimiser.
        costs: as measured; None: nothing was.
        say: hears what is being done.
    """
    network, traces, x = chain.network, chain.traces, chain.x
    memory = block_memory(network.blocks, traces, x)
    counted = counted_shares(traces, cuts)
    copies = optimizer_copies(optimizer)
    samples = x[0].shape[0]
    asked = predicted(settings, costs or _counted_costs(counted))
    bounds = list(itertools.pairwise([0, *cuts, len(traces)]))
    plan: dict[str, Any] = {
        "kind": "plan",
        "method": settings.method,
        "balance": settings.balance,
        "measured": costs is not None,
        "cuts": list(cuts),
        "samples_per_batch": samples,
        "stages": [
            {
                "stage": k,
                "blocks": network.names[a:b],
                "share": counted[k],
                "parameters": sum(each.parameters for each in memory[a:b]),
                "bytes": bytes_,
            }
            for k, ((a, b), bytes_) in enumerate(
                zip(bounds, _stage_bytes(asked, memory, bounds, copies), strict=True)
            )
        ],
        "links": [
            {"link": k, "bytes": _bytes(traces[cut - 1].outputs)} for k, cut in enumerate(cuts)
        ],
    }
    if costs is None:
        methods = predict_methods(settings, _counted_costs(counted))
    else:
        methods = predict_methods(settings, costs, say)
        total = sum(stage.total_s for stage in costs.together) or 1.0
        for row, stage in zip(plan["stages"], costs.together, strict=True):
            row["share"] = stage.total_s / total
            row["forward_s"], row["backward_s"] = stage.forward_s, stage.backward_s
        for row, link in zip(plan["links"], costs.links, strict=True):
            row["message_s"] = link.full.latency_s
            row["handling_s"] = link.full.put_s + link.full.take_s
    plan["methods"] = [
        {
            "method": each.label,
            "asked": each.settings.method == settings.method and each.label != "auto",
            "delays": each.delays,
            "samples_per_s": samples / each.period_s if costs is not None else None,
            "speed_up": each.speed_up,
            "staleness": each.staleness,
            "bytes": max(_stage_bytes(each, memory, bounds, copies)),
        }
        for each in methods
    ]
    chosen, why = best(methods)
    plan["choice"] = {"method": chosen.label, "why": why}
    return plan


def in_a_line(
    settings: PipelineSettings,
    cuts: Sequence[int],
    chain: TracedChain,
    expected_samples_per_s: float | None,
    cores: int | None,
) -> str:
    """Return what a run says of its cut before it starts.

    Args:
        settings: of the run.
        cuts: first blocks of stages 1..K-1.
        chain: that is cut.
        expected_samples_per_s: as measured; None: nothing was.
        cores: of the stages' machines; None: they do not compute on cores.
    """
    shares = counted_shares(chain.traces, cuts)
    blocks = [b - a for a, b in itertools.pairwise([0, *cuts, len(chain.traces)])]
    cut = (
        f"stages of {' + '.join(str(n) for n in blocks)} blocks, "
        f"{' + '.join(f'{share:.0%}' for share in shares)} of the work"
    )
    if expected_samples_per_s is not None:
        return f"{cut}\n{expected_samples_per_s:.0f} samples/s expected"
    if not cuts:
        return cut
    costs = _counted_costs(shares)
    locked = PipelineSettings(method="bp", stages=settings.stages)
    gain = predicted(locked, costs).period_s / predicted(settings, costs).period_s
    if cores is not None and cores < len(shares) and cores < gain:
        return (
            f"{cut}\nat best {cores}× bp, as {len(shares)} stages share {cores} "
            f"core{'s' if cores > 1 else ''}; {gain:.2f}× with a core for each and free messages"
        )
    return f"{cut}\nat best {gain:.2f}× bp, by counted work and with free messages"


def counted_shares(traces: Sequence[BlockTrace], cuts: Sequence[int]) -> list[float]:
    """Return each stage's share of the counted work."""
    work = stage_costs([[trace.cost for trace in traces]] * (len(cuts) + 1), cuts)
    return [each / (sum(work) or 1.0) for each in work]


def _counted_costs(shares: Sequence[float]) -> PipelineCosts:
    """Return costs without a unit: a backward takes two forwards, messages are free."""
    stages = [StageCost(forward_s=share / 3, backward_s=2 * share / 3) for share in shares]
    links = [LinkCost()] * (len(stages) - 1)
    return PipelineCosts(together=stages, alone=stages, links=links, cores={})


def _stage_bytes(
    plan: MethodPlan,
    memory: Sequence[BlockMemory],
    bounds: Sequence[tuple[int, int]],
    copies: float,
) -> list[int]:
    holds = held_by_stages(plan.settings, plan.settings.link_delays(), copies)
    return [stage_bytes(memory[a:b], what) for (a, b), what in zip(bounds, holds, strict=True)]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
