"""What a run asks of its blocks beside their shapes, checked before any actor starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from raylab.algorithms.stage.module_copy import copied_module
from raylab.algorithms.stage.packing import packed
from raylab.algorithms.stage.settings import OptimizerFactory
from raylab.drivers.one_value import batch_sizes, check_one_value
from raylab.drivers.optimizer_check import check_zero_step, untrained, untrained_note
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.drivers.pipeline.traced_chain import TracedChain
from raylab.drivers.samples_first import check_samples_first
from raylab.errors import ModelError
from raylab.planner.trace import told_of_bare_inputs

__all__ = ["check_bare_inputs", "check_normalised", "check_optimizer", "check_written_weights"]


def check_written_weights(settings: PipelineSettings, chain: TracedChain) -> None:
    """Check that a forward which runs again, in a replay or after a resume, finds its weights.

    Raises:
        ModelError: a block changes its weights anew in each of its forwards.
    """
    if not settings.rule.stale:
        return
    for name, trace in zip(chain.network.names, chain.traces, strict=True):
        if trace.rewrites_weights:
            raise ModelError(
                f"under {settings.method} a block may write into its weights only what a second "
                f"forward on the same input leaves as it is, but block {name!r} changes them each "
                "time: keep what moves in a buffer, or choose method=bp"
            )


def check_normalised(
    settings: PipelineSettings, chain: TracedChain, batches: Iterable[Any]
) -> None:
    """Check that no batch normalisation meets a single sample.

    Raises:
        ModelError: a batch or micro-batch has one alone.
    """
    (whole,) = chain.network.stages([])
    one = tuple(t[:1] for t in chain.x)

    def run(device: str) -> Any:
        given = packed([t.detach().clone().to(device) for t in one])
        return copied_module(whole).to(device).train()(given)

    check_one_value(run, batch_sizes(batches, len(chain.x[0])), parts=settings.parts)


def check_bare_inputs(settings: PipelineSettings, chain: TracedChain, cuts: Sequence[int]) -> None:
    """Check that re-entrant checkpoints train their blocks where no gradient is asked for below.

    That is at the network's input, and under a method that passes none down at each stage's.

    Raises:
        ModelError: a block's weights would never get a gradient.
    """
    for start in [0, *(cuts if settings.rule.feedback == "none" else ())]:
        for i in range(start, len(chain.traces)):
            block, name = chain.network.blocks[i], chain.network.names[i]
            if not any(p.requires_grad for p in block.parameters()):
                continue
            if chain.traces[i].reentrant:
                given = chain.traces[i - 1].outputs if i else chain.x
                zeros = [torch.zeros(t.shape, dtype=t.dtype) for t in given]
                with told_of_bare_inputs() as told, torch.random.fork_rng(devices=[]):
                    copied_module(block).train()(packed(zeros))
                if told:
                    raise ModelError(
                        f"a block must be trained, but {name!r} is checkpointed with "
                        "use_reentrant=True on an input without a gradient, where torch gives its "
                        "weights none: choose use_reentrant=False"
                    )
            break


def check_optimizer(
    settings: PipelineSettings,
    chain: TracedChain,
    cuts: Sequence[int],
    optimizer: OptimizerFactory,
) -> list[str]:
    """Check that an optimiser trains what its stages have; return what a user should know of it.

    Raises:
        ConfigError: it does not, or cannot make the empty updates that the method begins with.
        ModelError: it looks at single samples, and a layer has them in another dimension.
    """
    left = [
        each
        for k, module in enumerate(chain.network.stages(cuts))
        for each in untrained(optimizer, module, f"stage {k} of {settings.count}")
    ]
    if settings.rule.stale and settings.count > 1:
        check_zero_step(optimizer)
    (whole,) = chain.network.stages([])
    check_samples_first(optimizer, whole, packed(chain.x), chain.x[0].shape[0])
    return untrained_note(left)
