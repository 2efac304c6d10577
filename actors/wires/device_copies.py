"""Copies to a GPU beside its compute: one stream of a stage's process for all that comes in.

On the CPU nothing is copied and there are no streams. Everything that knows about CUDA streams is
in here:

    aside      what is started inside is ordered on the side stream, not behind the compute
    begin      host to device from pinned memory, on the side stream
    finish     the compute stream waits for just these copies
    adopt      tensors made on the side stream may be freed as if they were the compute stream's
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.units import Tensors

__all__ = ["DeviceCopies", "OnTheWay"]


@dataclass(frozen=True, slots=True)
class OnTheWay:
    """Tensors on the device that are being filled; `event` tells when, None: at once."""

    tensors: Tensors
    event: torch.cuda.Event | None = None


class DeviceCopies:
    """The side stream of one process.

    Args:
        device: where the stage computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def aside(self) -> contextlib.AbstractContextManager[object]:
        """Return a context whose work is ordered on the side stream."""
        return contextlib.nullcontext() if self._side is None else torch.cuda.stream(self._side)

    def begin(self, tensors: Tensors) -> OnTheWay:
        """Start copying tensors of the host to the device; return at once."""
        if self._side is None:
            return OnTheWay(tensors)
        with torch.cuda.stream(self._side):
            there = tuple(None if t is None else self._copied(t) for t in tensors)
            return OnTheWay(there, self._side.record_event())

    def finish(self, coming: OnTheWay) -> Tensors:
        """Return the tensors, safe for what the compute stream does from now on."""
        if coming.event is not None:
            torch.cuda.current_stream(self.device).wait_event(coming.event)
            self.adopt([t for t in coming.tensors if t is not None])
        return coming.tensors

    def adopt(self, tensors: Sequence[Tensor]) -> None:
        """Tell the allocator that the compute stream reads tensors made on the side stream."""
        if self._side is not None:
            stream = torch.cuda.current_stream(self.device)
            for tensor in tensors:
                tensor.record_stream(stream)

    def mark(self) -> torch.cuda.Event | None:
        """Return an event of all that has been ordered on the side stream, None on the CPU."""
        return None if self._side is None else self._side.record_event()

    def _copied(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu":
            return tensor
        # Torch's allocator of pinned memory keeps it until the copy is done.
        return tensor.pin_memory().to(self.device, non_blocking=True)
