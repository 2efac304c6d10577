"""What the numbers of a run mean for each stage: for its loop and for its computation."""

from __future__ import annotations

from collections.abc import Sequence

from actors.pipeline.program import StageProgram
from raylab.algorithms.stage.cut_features import CutFeatures
from raylab.algorithms.stage.settings import StageSettings
from raylab.drivers.pipeline.settings import PipelineSettings

__all__ = ["programs", "recheck_ages", "stage_settings"]


def recheck_ages(programs: Sequence[StageProgram]) -> tuple[int, ...]:
    """Return how old the batches are that sigma is measured with: the delays, each once."""
    return tuple(sorted({program.delay or 0 for program in programs}))


def programs(
    settings: PipelineSettings, link_delays: Sequence[int | None], report_every: int
) -> list[StageProgram]:
    """Return the program of every stage."""
    delays = settings.rule.stage_delays(link_delays)
    # In lock step the stages above a link of delay >= 2 work one tick later than the one below.
    hops = [1 if link is not None and link >= 2 else 0 for link in link_delays]
    offsets = [sum(hops[:k]) for k in range(settings.count)]
    span = max(offset + (delay or 0) for offset, delay in zip(offsets, delays, strict=True))
    return [
        StageProgram(
            stage=k,
            stages=settings.count,
            delay=delays[k],
            link_delay=(link_delays[k] or 0) if k < settings.count - 1 else 0,
            accumulate=settings.accumulate,
            flush=settings.rule.flush,
            barrier=settings.barrier,
            offset=offsets[k] if settings.barrier else 0,
            span=span if settings.barrier else 0,
            report_every=report_every,
            timeline=settings.timeline,
            feedback=settings.rule.feedback,
            labelled=settings.rule.feedback != "error",
        )
        for k in range(settings.count)
    ]


def stage_settings(
    settings: PipelineSettings,
    program: StageProgram,
    *,
    protect_inputs: bool,
    device: str,
    writes_weights: bool = False,
    resumable: bool = False,
    cut: CutFeatures | None = None,
) -> StageSettings:
    """Return what the computation of one stage needs to know."""
    return StageSettings(
        stage=program.stage,
        stages=program.stages,
        delay=program.delay,
        accumulate=program.accumulate,
        flush=program.flush,
        replay=settings.rule.replay,
        recompute=settings.recompute,
        resumable=resumable,
        weight_version=settings.weight_version,
        clip_norm=settings.clip_norm,
        clip_value=settings.clip_value,
        precision=settings.precision,
        gradient_shrink=settings.gradient_shrink,
        seed=settings.seed,
        protect_inputs=protect_inputs,
        writes_weights=writes_weights,
        device=device,
        cut=cut,
    )
