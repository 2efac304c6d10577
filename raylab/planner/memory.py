"""What a stage holds: copies of its weights, graphs and inputs of the batches in flight.

HUO Table 6 in bytes: BP keeps one graph, DDG and ADL D+1 of them and the weights of their forwards,
FR D+1 inputs and one graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raylab.algorithms.stage.module_copy import copied_module
from raylab.algorithms.stage.packing import packed
from raylab.planner.trace import BlockTrace

__all__ = ["BlockMemory", "Held", "block_memory", "held", "memory_matrix", "stage_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMemory:
    """One block with one batch.

    Args:
        parameters: how many numbers it has, buffers left out.
        weight_bytes: of its parameters.
        graph_bytes: that autograd keeps of a forward until its backward.
        input_bytes: of its inputs.
    """

    parameters: int
    weight_bytes: int
    graph_bytes: int
    input_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a stage holds at most.

    Args:
        copies: of its weights: themselves, gradient, optimiser's state, versions in flight.
        graphs: in flight, in batches.
        inputs: kept for a replay, in batches.
    """

    copies: float
    graphs: float
    inputs: float


def held(
    *,
    delay: int | None,
    accumulate: int,
    parts: int,
    flush: bool,
    replay: bool,
    recompute: bool,
    versions: bool,
    optimizer: float,
) -> Held:
    """Return what a stage holds.

    Args:
        delay: D, units between a forward and its backward; None: until the window ends.
        accumulate: M, batches per update.
        parts: micro-batches per batch.
        flush: the pipeline empties before every update.
        replay: inputs are kept instead of graphs, for a forward with the weights of now.
        recompute: inputs are kept instead of graphs, for a forward with the weights of theirs.
        versions: late gradients are evaluated at the weights of their forward.
        optimizer: copies of the weights in the optimiser's state.
    """
    copies = 2.0 + optimizer
    window = accumulate * parts
    if flush or not delay:
        units = window if delay is None else min(delay + 1, window)
        return Held(copies=copies, graphs=units / parts, inputs=0.0)
    if replay:
        return Held(copies=copies, graphs=1.0, inputs=delay + 1.0)
    kept = math.ceil(delay / accumulate) if versions else 0
    graphs, inputs = (1.0, delay + 1.0) if recompute else (delay + 1.0, 0.0)
    return Held(copies=copies + kept, graphs=graphs, inputs=inputs)


def stage_bytes(blocks: Sequence[BlockMemory], what: Held) -> int:
    """Return the bytes that a stage of `blocks` holds, without what waits in its mailboxes."""
    body = sum(what.copies * b.weight_bytes + what.graphs * b.graph_bytes for b in blocks)
    return round(body + what.inputs * blocks[0].input_bytes)


def memory_matrix(
    blocks: Sequence[BlockMemory], stages: Sequence[Held]
) -> tuple[list[list[float]], list[list[float]]]:
    """Return `costs` and `entries` of `best_cuts` for the smallest largest memory, in bytes."""
    return (
        [[s.copies * b.weight_bytes + s.graphs * b.graph_bytes for b in blocks] for s in stages],
        [[s.inputs * b.input_bytes for b in blocks] for s in stages],
    )


def block_memory(
    blocks: Sequence[nn.Module], traces: Sequence[BlockTrace], inputs: Sequence[Tensor]
) -> list[BlockMemory]:
    """Return what each block of a chain holds for one batch, without computing it.

    Args:
        blocks: the chain; not changed.
        traces: of its blocks.
        inputs: x of one batch.
    """
    given = [tuple(inputs), *(trace.outputs for trace in traces[:-1])]
    return [
        BlockMemory(
            parameters=sum(p.numel() for p in block.parameters()),
            weight_bytes=_bytes(block.parameters()),
            graph_bytes=_graph_bytes(block, values, leaf=position == 0),
            input_bytes=_bytes(values),
        )
        for position, (block, values) in enumerate(zip(blocks, given, strict=True))
    ]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _graph_bytes(block: nn.Module, inputs: Sequence[Tensor], *, leaf: bool) -> int:
    with torch.random.fork_rng(devices=[]):
        try:
            return _saved(block, inputs, leaf, "meta")
        except Exception:  # whatever a model's Python says to shapes without values
            return _saved(block, inputs, leaf, "cpu")


def _saved(block: nn.Module, inputs: Sequence[Tensor], leaf: bool, device: str) -> int:
    twin = copied_module(block).to(device).train()
    own = {p.untyped_storage()._cdata for p in twin.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept[key] = tensor
        return tensor

    values = []
    for t in inputs:
        value = torch.zeros(t.shape, dtype=t.dtype, device=device)
        trains = not leaf and (t.is_floating_point() or t.is_complex())
        # A clone, because a block may write into its input.
        values.append(value.requires_grad_(trains).clone())
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        outputs = twin(packed(values))
    del outputs
    return sum(t.untyped_storage().nbytes() for t in kept.values())
