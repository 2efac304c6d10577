"""The elements of tensors as bytes, and bytes as tensors."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.wires.carrier import TensorSpec

__all__ = ["ALIGNMENT", "DTYPES", "aligned_copy", "elements", "tensor_at"]

ALIGNMENT = 64
"""Bytes: of all memory that torch allocates. The kernels of BLAS take other paths, which add in
another order, for memory that begins elsewhere, and where a wire puts a message is chance: without
this a run would not be the same from its seed."""

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


def elements(tensor: Tensor) -> NDArray[Any]:
    """Return the elements in C order, one after another in the CPU's memory."""
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.detach().view(torch.int16)
    try:
        array = tensor.numpy()
    except (RuntimeError, TypeError):
        # It has gradients, is elsewhere or not conjugated yet; to ask for it always takes longer.
        array = tensor.numpy(force=True)
    return np.ascontiguousarray(array)


def tensor_at(memory: memoryview, offset: int, spec: TensorSpec) -> Tensor:
    """Return the tensor whose elements are there in writable memory, which it shares."""
    dtype, shape = spec.dtype, spec.shape
    count = spec.bytes // dtype.itemsize
    array: NDArray[Any] = np.frombuffer(memory, _ARRAYS[dtype], count, offset)
    tensor = torch.from_numpy(array if len(shape) == 1 else array.reshape(shape))
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor


def aligned_copy(memory: memoryview) -> memoryview:
    """Return the same bytes where torch would have put them, to be written to."""
    copy = torch.empty(memory.nbytes, dtype=torch.uint8).numpy().data
    copy[:] = memory.cast("B")
    return copy
