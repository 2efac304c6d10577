"""One unit of training between its forward and its backward at one stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raylab.algorithms.stage.memory import bytes_of
from raylab.algorithms.stage.settings import Tensors

__all__ = ["InFlight", "OpenUnit"]


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
        found: Tensors = torch.autograd.grad(
            ends, [*wanted, *self.weights], given, allow_unused=True
        )
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
