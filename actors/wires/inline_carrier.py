"""Tensors as frames behind the header: the carrier of every link between CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Buffer

from actors.wires.carrier import TensorSpec

__all__ = ["DTYPES", "INLINE", "InlineCarrier", "elements", "tensor_at"]

_ARRAYS: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(np.int16),
    torch.uint8: np.dtype(np.uint8),
    torch.int8: np.dtype(np.int8),
    torch.int16: np.dtype(np.int16),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
    torch.bool: np.dtype(np.bool_),
    torch.complex64: np.dtype(np.complex64),
    torch.complex128: np.dtype(np.complex128),
}
"""What numpy calls the elements; of bfloat16 it knows the size only."""
DTYPES: Final = tuple(_ARRAYS)
"""What messages carry; a header names one by its place in here."""


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
        """Return tensors that share the frames' memory."""
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


def elements(tensor: Tensor) -> NDArray[Any]:
    """Return the elements in C order, one after another in the CPU's memory."""
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.detach().view(torch.int16)
    return np.ascontiguousarray(tensor.numpy(force=True))


def tensor_at(memory: memoryview, offset: int, spec: TensorSpec) -> Tensor:
    """Return the tensor whose elements are in writable memory, which it shares."""
    dtype, shape = spec.dtype, spec.shape
    array: NDArray[Any] = np.frombuffer(
        memory, _ARRAYS[dtype], spec.bytes // dtype.itemsize, offset
    )
    if not array.flags.aligned:
        # Operators read whole elements from where the processor expects them.
        array = array.copy()
    tensor = torch.from_numpy(array if len(shape) == 1 else array.reshape(shape))
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor


def _tensor(spec: TensorSpec, frame: Buffer) -> Tensor:
    body = memoryview(frame)
    if body.readonly:
        # torch would hand out writable memory all the same; what Ray maps must not be written.
        body = memoryview(bytearray(body))
    return tensor_at(body, 0, spec)
