"""How long a stage takes for a batch."""

from __future__ import annotations

import copy
import time

import torch

from raylab.algorithms.stage.blocks import StageBlocks
from raylab.algorithms.stage.layerwise import collect, recording
from raylab.algorithms.stage.module_copy import graphless
from raylab.algorithms.stage.packing import as_list, packed
from raylab.algorithms.stage.settings import Tensors
from raylab.algorithms.stage.update_window import UpdateWindow

__all__ = ["time_stage"]


def time_stage(
    blocks: StageBlocks, window: UpdateWindow, accumulate: int, inputs: Tensors, repeats: int
) -> list[tuple[float, float]]:
    """Time forward and backward, with its share of an update, on a copy of the stage.

    The last stage is timed up to its output, the loss being small beside it.

    Args:
        blocks: of the stage.
        window: of the stage.
        accumulate: M, of which an update is shared.
        inputs: of one batch.
        repeats: how often.

    Returns:
        (forward, backward) in seconds, one pair a repeat.
    """
    # In one go, so that the copied optimiser steps the copied parameters.
    module = blocks.module.train()
    twin, optimizer = copy.deepcopy((module, window.optimizer), graphless(module))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        given = blocks.protected(blocks.received(inputs))
        with blocks.autocast(), recording(optimizer) as recorded:
            outputs = as_list(twin(packed(given)))
        blocks.synchronise()
        forwarded = time.perf_counter()
        ends = [t for t in outputs if t.requires_grad]
        if ends:
            torch.autograd.backward(ends, [torch.zeros_like(t) for t in ends])
        blocks.synchronise()
        returned = time.perf_counter()
        if optimizer is not None:
            collect(optimizer, recorded)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        blocks.synchronise()
        update_s = (time.perf_counter() - returned) / accumulate
        times.append((forwarded - started, returned - forwarded + update_s))
    return times
