"""Tensors as frames behind the header: the carrier of every link between CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor
from typing_extensions import Buffer

from actors.wires.carrier import TensorSpec
from actors.wires.elements import ALIGNMENT, aligned_copy, elements, tensor_at

__all__ = ["INLINE", "InlineCarrier"]


class InlineCarrier:
    """Refers to the tensors' memory, which ZeroMQ's thread reads later; keeps nothing itself.

    Tensors elsewhere than on the CPU are copied to it.
    """

    carries = False

    def send(self, tensors: Sequence[Tensor]) -> list[Buffer]:
        """Return a frame a tensor."""
        return [elements(tensor).data.cast("B") for tensor in tensors]

    def taken(self, count: int) -> None:
        """Nothing is held."""

    def receive(self, specs: Sequence[TensorSpec], frames: Sequence[Buffer]) -> InlineArrival:
        """Return tensors in the frames' memory, or in memory of torch where that is not aligned."""
        return InlineArrival(
            [_tensor(spec, memoryview(frame)) for spec, frame in zip(specs, frames, strict=True)]
        )

    def close(self) -> None:
        """Nothing is held."""


class InlineArrival:
    """Tensors that came with their header."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors

    def wait(self) -> list[Tensor]:
        """Return the tensors."""
        return self._tensors


INLINE: Final = InlineCarrier()
"""It holds nothing, so that one serves all links."""


def _tensor(spec: TensorSpec, body: memoryview) -> Tensor:
    # torch would hand out writable memory even of what Ray maps, which must not be written.
    if not body.readonly:
        tensor = tensor_at(body, 0, spec)
        if tensor.data_ptr() % ALIGNMENT == 0:
            return tensor
    return tensor_at(aligned_copy(body), 0, spec)
