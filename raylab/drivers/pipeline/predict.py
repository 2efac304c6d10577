"""What every method would give on the same stages: throughput, staleness, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from raylab.algorithms.pipeline import PIPELINE_METHODS
from raylab.drivers.notes import Say, silence
from raylab.drivers.pipeline.rehearsal import rehearsed_period_s
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.errors import ConfigError
from raylab.planner import Held, PipelineCosts, choose_link_delays, held

__all__ = ["MethodPlan", "best", "held_by_stages", "predict_methods", "predicted", "staleness"]

_TOLD_EVERY = 3
"""Methods between two lines of progress."""
_AS_FAST = 0.03
"""Share of the throughput that predictions do not tell apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPlan:
    """One method on the planned stages.

    Args:
        label: the method, or "auto" for ddg with delay=auto.
        settings: with the delays of the links.
        delays: of the links; None where gradients are never late.
        period_s: between two batches.
        speed_up: over bp through the same stages.
        staleness: mean over stages and batches, in updates.
    """

    label: str
    settings: PipelineSettings
    delays: list[int] | None
    period_s: float
    speed_up: float
    staleness: float


def staleness(settings: PipelineSettings, link_delays: Sequence[int | None]) -> float:
    """Return the mean staleness D_k / M over stages, in updates: the mean of (17) of ADL."""
    if settings.rule.flush:
        return 0.0
    delays = settings.rule.stage_delays(link_delays)
    return sum(d or 0 for d in delays) / (settings.accumulate * len(delays))


def predicted(settings: PipelineSettings, costs: PipelineCosts, label: str = "") -> MethodPlan:
    """Predict one run; `delay="auto"` is chosen from the costs. Its speed-up is left at 1."""
    delays = settings.link_delays()
    if settings.delay == "auto":
        times = [(stage.forward_s, stage.backward_s) for stage in costs.together]
        delays = list(
            choose_link_delays(
                times, costs.message_s, replay=settings.rule.replay or settings.recompute
            )
        )
        settings = replace(settings, delay=tuple(d or 0 for d in delays))
    return MethodPlan(
        label=label or settings.method,
        settings=settings,
        delays=[d or 0 for d in delays] if settings.rule.delayed else None,
        period_s=rehearsed_period_s(settings, delays, costs),
        speed_up=1.0,
        staleness=staleness(settings, delays),
    )


def predict_methods(
    settings: PipelineSettings, costs: PipelineCosts, say: Say = silence
) -> list[MethodPlan]:
    """Predict every method with the other settings as they are, and delay=auto.

    The method of `settings` keeps the delay that was asked for, the others have their own.
    """
    cases = {name: _other(settings, name) for name in PIPELINE_METHODS}
    cases[settings.method] = settings
    cases["auto"] = _other(settings, "ddg", delay="auto")
    plans = []
    for index, (label, case) in enumerate(cases.items(), start=1):
        if index % _TOLD_EVERY == 1:
            say(f"predicting {label}, method {index} of {len(cases)}")
        plans.append(predicted(case, costs, label))
    locked = next(plan.period_s for plan in plans if plan.label == "bp")
    return [
        replace(plan, speed_up=locked / plan.period_s if plan.period_s > 0 else 1.0)
        for plan in plans
    ]


def _other(
    settings: PipelineSettings, method: str, delay: Literal["auto"] | None = None
) -> PipelineSettings:
    """Return settings of another method, in lock step if it has one and that was asked for."""
    plain = PipelineSettings(
        method=method,
        stages=settings.stages,
        accumulate=settings.accumulate,
        delay=delay,
        weight_version=settings.weight_version,
        micro_batches=settings.micro_batches,
    )
    try:
        return replace(plain, barrier=settings.barrier)
    except ConfigError:
        return plain


def best(plans: Sequence[MethodPlan]) -> tuple[MethodPlan, str]:
    """Return the method to choose, and why: the least stale of those that are as fast.

    Methods whose stages train on a gradient of their own making are no choice of speed alone.
    """
    exact = [plan for plan in plans if plan.settings.rule.feedback == "error"]
    fastest = min(exact, key=lambda plan: plan.period_s)
    equal = [p for p in exact if p.period_s <= fastest.period_s * (1 + _AS_FAST)]
    chosen = min(equal, key=lambda plan: (plan.staleness, plan.period_s))
    why = f"{chosen.speed_up:.2f}× over bp"
    if chosen.label == fastest.label and len(equal) == 1:
        return chosen, f"{why}, the fastest by more than {_AS_FAST:.0%}"
    if chosen.label == fastest.label:
        return chosen, f"{why}, the fastest, and none as fast is less stale"
    return chosen, (
        f"{why}, as fast as {fastest.label} within {_AS_FAST:.0%}, with a mean staleness of "
        f"{chosen.staleness:.2f} instead of {fastest.staleness:.2f}"
    )


def held_by_stages(
    settings: PipelineSettings, link_delays: Sequence[int | None], optimizer: float
) -> list[Held]:
    """Return what every stage holds.

    Args:
        settings: of the run.
        link_delays: of each link.
        optimizer: copies of the weights in the optimiser's state.
    """
    return [
        held(
            delay=delay,
            accumulate=settings.accumulate,
            parts=settings.parts,
            flush=settings.rule.flush,
            replay=settings.rule.replay,
            recompute=settings.recompute,
            versions=settings.weight_version == "forward",
            optimizer=optimizer,
        )
        for delay in settings.rule.stage_delays(link_delays)
    ]
