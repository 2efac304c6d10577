"""Tensors of a GPU that both processes share: handles of CUDA IPC, no copy through the host.

The sender keeps a tensor until the credit of its message is back. The receiver opens the sender's
memory, copies it within the card on the side stream, closes it, and waits for that copy before the
credit goes: nobody reads memory that its owner has given back.

A handle is what `torch.multiprocessing` itself sends between processes, here as JSON. Torch's
handles hold an event, too: the receiver's copy waits on the card for the sender's computation.
"""

from __future__ import annotations

import inspect
import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing import reductions
from typing_extensions import Buffer

from actors.errors import LinkError, MailboxError
from actors.wires.carrier import TensorSpec
from actors.wires.device_copies import DeviceCopies

__all__ = ["CudaMemory", "IpcCarrier", "SharedMemory"]

Handle = Mapping[str, Any]

_PLAIN = (
    "tensor_offset",
    "storage_size_bytes",
    "storage_offset_bytes",
    "ref_counter_offset",
    "event_sync_required",
)
_BYTES = ("storage_handle", "ref_counter_handle", "event_handle")
_FIELDS = tuple(inspect.signature(reductions.rebuild_cuda_tensor).parameters)
"""What torch rebuilds a tensor from, in its order. The header has some of it, the receiver knows
some better, and what is named above travels."""


class SharedMemory(Protocol):
    """Memory that two processes see."""

    def share(self, tensor: Tensor) -> Handle:
        """Return what the other process opens the memory of a tensor with: plain JSON."""
        ...

    def open(self, handle: Handle, spec: TensorSpec) -> Tensor:
        """Return a tensor in the other process's memory; it is closed when the tensor goes."""
        ...


class CudaMemory:
    """Memory of a GPU, by what `torch.multiprocessing` reduces a tensor to.

    Args:
        device: as this process knows the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def share(self, tensor: Tensor) -> Handle:
        """Return the handle of a tensor of the GPU, and an event of what computes it."""
        _, fields = reductions.reduce_tensor(tensor)  # type: ignore[no-untyped-call]
        found = dict(zip(_FIELDS, fields, strict=True))
        return {
            "tensor_stride": list(found["tensor_stride"]),
            **{name: found[name] for name in _PLAIN},
            **{name: found[name].hex() for name in _BYTES},
        }

    def open(self, handle: Handle, spec: TensorSpec) -> Tensor:
        """Return the tensor; the current stream waits for its sender's computation."""
        fields = {
            **handle,
            **{name: bytes.fromhex(handle[name]) for name in _BYTES},
            "tensor_cls": Tensor,
            "tensor_size": torch.Size(spec.shape),
            "storage_cls": torch.storage.TypedStorage,
            "dtype": spec.dtype,
            "storage_device": self._device.index or 0,
            "requires_grad": False,
        }
        tensor: Tensor = reductions.rebuild_cuda_tensor(*[fields[name] for name in _FIELDS])  # type: ignore[no-untyped-call]
        return tensor


class IpcCarrier:
    """One end of a link.

    Args:
        name: of the link.
        copies: of this process.
        memory: that the two processes share.
    """

    carries = True

    def __init__(self, name: str, copies: DeviceCopies, memory: SharedMemory) -> None:
        self._name = name
        self._copies = copies
        self._memory = memory
        self._sent: deque[list[Tensor]] = deque()

    @property
    def held(self) -> int:
        """Messages whose tensors are kept here."""
        return len(self._sent)

    def send(self, tensors: Sequence[Tensor]) -> list[Buffer]:
        """Return a frame a tensor, with its handle; the tensors are kept."""
        kept = [
            tensor.detach().to(self._copies.device).resolve_conj().resolve_neg()
            for tensor in tensors
        ]
        handles = [json.dumps(self._memory.share(tensor)).encode() for tensor in kept]
        self._sent.append(kept)
        return [*handles]

    def taken(self, count: int) -> None:
        """Let go of messages that were taken: the receiver has its copies."""
        for _ in range(count):
            self._sent.popleft()

    def receive(self, specs: Sequence[TensorSpec], frames: Sequence[Buffer]) -> _Arrival:
        """Start copying out of the sender's memory."""
        if len(frames) != len(specs):
            raise MailboxError(f"{self._name}: {len(frames)} handles came for {len(specs)} tensors")
        try:
            with self._copies.aside():
                theirs = [
                    self._memory.open(json.loads(bytes(frame)), spec)
                    for frame, spec in zip(frames, specs, strict=True)
                ]
                copies = [t.clone(memory_format=torch.contiguous_format) for t in theirs]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise LinkError(f"the link {self._name} was cut: {error}") from error
        return _Arrival(theirs, copies, self._copies)

    def close(self) -> None:
        """Let go of everything."""
        self._sent.clear()


class _Arrival:
    """Copies that were started, and the memory that they read."""

    def __init__(self, theirs: list[Tensor], copies: list[Tensor], device: DeviceCopies) -> None:
        self._theirs = theirs
        self._copies = copies
        self._device = device
        self._copied = device.mark()

    def wait(self) -> list[Tensor]:
        if self._copied is not None:
            self._copied.synchronize()
        self._theirs.clear()
        self._device.adopt(self._copies)
        return self._copies
