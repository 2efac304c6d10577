"""Bytes that a stage holds for batches between their forward and their backward.

    activations   inputs, and what autograd saves: of every open batch
    versions      weights of old forwards that an open batch will read

What autograd saves for a batch follows from the shapes of its inputs, so that it is counted once
for each of them, while the graph grows, and then known (HUO Table 6 counts the same in layers).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["GraphBytes", "bytes_of"]

_Shapes = tuple[Any, ...]


def bytes_of(tensors: Iterable[Tensor | None]) -> int:
    """Return the bytes of the elements of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


class GraphBytes:
    """Bytes of the graphs of one stage, by the shapes of its inputs."""

    def __init__(self) -> None:
        self._known: dict[_Shapes, int] = {}
        self.last = 0
        """Of the graph that was grown last."""
        self.first = False
        """Whether that was the first one over inputs of its shapes."""

    @contextlib.contextmanager
    def grown(self, inputs: Sequence[Tensor], held: Iterable[Tensor]) -> Iterator[None]:
        """Count what is saved by a forward over `inputs`, unless it is known.

        Args:
            inputs: of the stage; not counted, they are kept in any case.
            held: weights and buffers, not counted either.
        """
        shapes = tuple((tuple(t.shape), t.dtype) for t in inputs)
        self.first = shapes not in self._known
        if not self.first:
            yield
        else:
            apart = {t.untyped_storage().data_ptr() for t in (*inputs, *held)}
            saved: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in apart:
                    saved[storage.data_ptr()] = storage.nbytes()
                # Not the tensor itself: an output that its own graph saved would never be freed.
                return tensor.detach()

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                yield
            self._known[shapes] = sum(saved.values())
        self.last = self._known[shapes]
