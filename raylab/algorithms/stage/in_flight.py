"""One unit of training between its forward and its backward at one stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raylab.algorithms.stage.memory import bytes_of
from raylab.algorithms.stage.settings import Tensors

__all__ = ["InFlight", "OpenUnit", "goes_as_a_whole"]


@dataclass(slots=True)
class InFlight:
    """One unit between its forward and its backward: a graph, or an input to replay."""

    inputs: list[Tensor]
    labels: Tensors
    version: int
    outputs: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    copies: dict[str, Tensor] = field(default_factory=dict)
    """The weights as they were, where `weights` will change with the parameters."""
    recorded: Any = None
    """What its forward has left for an optimiser that looks at single samples."""
    whole: bool = False
    """Whether its graph can only be gone through as a whole, see `goes_as_a_whole`."""
    first: bool = False
    """Whether its graph is the first one over inputs of its shapes."""
    graph_bytes: int = 0
    """Of what autograd has saved for it."""

    def bytes(self) -> int:
        """Return what the unit holds beside weights."""
        return self.graph_bytes + bytes_of(self.inputs)

    def differentiated(
        self, ends: Sequence[Tensor], given: Sequence[Tensor]
    ) -> tuple[Tensors, Tensors]:
        """Return the gradients at the inputs and at the weights, None where there are none.

        Args:
            ends: of the unit's graph.
            given: the gradients there.
        """
        wanted = [t for t in self.inputs if t.requires_grad]
        if not any(end.requires_grad for end in ends):
            return tuple(None for _ in self.inputs), tuple(None for _ in self.weights)
        sources = [*wanted, *self.weights]
        if self.whole:
            found = _accumulated(ends, sources, given)
        else:
            found = torch.autograd.grad(ends, sources, given, allow_unused=True)
        at_inputs = iter(found[: len(wanted)])
        return (
            tuple(next(at_inputs) if t.requires_grad else None for t in self.inputs),
            found[len(wanted) :],
        )


@dataclass(frozen=True, slots=True)
class OpenUnit:
    """A unit whose forward has been, as its draws know it."""

    batch: int
    part: int
    parts: int = 1
    share: float = 1.0
    loss_share: float = 1.0


def goes_as_a_whole(ends: Sequence[Tensor]) -> bool:
    """Tell whether a graph has a part that is checkpointed with `use_reentrant=True`.

    Such a part calls autograd within its backward and leaves gradients in `.grad`; torch refuses it
    where gradients are asked for by name.
    """
    seen: set[Any] = set()
    ahead: list[Any] = [end.grad_fn for end in ends]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        ahead.extend(each for each, _ in node.next_functions)
    return False


def _accumulated(
    ends: Sequence[Tensor], sources: Sequence[Tensor], given: Sequence[Tensor]
) -> Tensors:
    """Return what a whole backward pass leaves at some leaves, which are then as before."""
    before = [leaf.grad for leaf in sources]
    for leaf in sources:
        leaf.grad = None
    try:
        torch.autograd.backward(ends, given)
        return tuple(leaf.grad for leaf in sources)
    finally:
        for leaf, grad in zip(sources, before, strict=True):
            leaf.grad = grad
