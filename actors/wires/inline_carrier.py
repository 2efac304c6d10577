"""Tensors as frames behind the header: the carrier of every link between CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from typing_extensions import Buffer

from actors.wires.carrier import TensorSpec, flat_bytes

__all__ = ["INLINE", "InlineCarrier"]

_AS_THEY_ARE = {torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8}
"""What numpy knows too, so that a contiguous tensor's memory is its buffer."""


_ALIGNMENT = 64
"""Bytes: of all memory that torch allocates. The kernels of BLAS take other paths, which add in
another order, for memory that begins elsewhere, and where ZeroMQ puts a frame is chance: without
this a run would not be the same from its seed."""


class InlineCarrier:
    """Refers to the tensors' memory, which ZeroMQ's thread reads later; keeps nothing itself.

    Tensors elsewhere than on the CPU are copied to it.
    """

    carries = False

    def send(self, tensors: Sequence[Tensor]) -> list[Buffer]:
        """Return a frame a tensor."""
        return [_plain(tensor).numpy().data.cast("B") for tensor in tensors]

    def taken(self, count: int) -> None:
        """Nothing is held."""

    def receive(self, specs: Sequence[TensorSpec], frames: Sequence[Buffer]) -> InlineArrival:
        """Return tensors in the frames' memory, or in memory of torch where that is not aligned."""
        return InlineArrival(
            [_tensor(spec, frame) for spec, frame in zip(specs, frames, strict=True)]
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


def _plain(tensor: Tensor) -> Tensor:
    """Return the elements in C order, one after another in the CPU's memory."""
    if tensor.is_contiguous() and tensor.numel() > 1 and tensor.dtype in _AS_THEY_ARE:
        return tensor.detach().cpu()
    return flat_bytes(tensor.detach().cpu())


def _tensor(spec: TensorSpec, frame: Buffer) -> Tensor:
    body = memoryview(frame)
    # torch would hand out writable memory even of what Ray maps, which must not be written.
    if not body.readonly:
        flat = torch.frombuffer(body, dtype=torch.uint8)
        if flat.data_ptr() % _ALIGNMENT == 0:
            return flat.view(spec.dtype).reshape(spec.shape)
    copy = torch.empty(spec.shape, dtype=spec.dtype)
    flat_bytes(copy).numpy().data[:] = body.cast("B")
    return copy
