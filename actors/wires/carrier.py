"""What carries the tensors of messages over a link; the headers always travel by the wire.

    inline        the elements are frames behind the header (`inline_carrier`)
    distributed   torch.distributed from process to process: NCCL, or gloo (`distributed_carrier`)
    ipc           the memory itself, of a GPU that both processes share (`ipc_carrier`)

The header says dtype, shape and whether a tensor is carried outside the frames. Order, credits,
the checksum and the news of a cut are the wire's; what is carried outside the frames is in no
checksum.

A carrier serves one end of one link. A sender keeps what it carries until the credit of its message
comes back, so memory is bounded by credits whatever carries it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import Buffer

__all__ = ["Arrival", "CarrierKind", "TensorCarrier", "TensorSpec", "flat_bytes"]

CarrierKind = Literal["inline", "distributed", "ipc"]


class TensorSpec(NamedTuple):
    """What a header tells of one tensor.

    Args:
        dtype: of its elements.
        shape: of the tensor.
        carried: whether its elements travel outside the frames.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    carried: bool = False

    @property
    def bytes(self) -> int:
        """The size of its elements."""
        shape = self.shape
        return (shape[0] if len(shape) == 1 else math.prod(shape)) * self.dtype.itemsize


class Arrival(Protocol):
    """Tensors on their way."""

    def wait(self) -> list[Tensor]:
        """Return the tensors once they may be computed with.

        Raises:
            LinkError: they cannot come any more.
        """
        ...


class TensorCarrier(Protocol):
    """One end of a link, for the tensors of its messages. Called by one thread."""

    carries: bool
    """Whether elements travel outside the frames."""

    def send(self, tensors: Sequence[Tensor]) -> list[Buffer]:
        """Start sending the tensors of the next message, none of them empty; do not wait.

        Called for every message, also for one without tensors.

        Returns:
            The frames to send behind the header.

        Raises:
            LinkError: the other end is gone.
        """
        ...

    def taken(self, count: int) -> None:
        """Let go of the `count` oldest messages: their credits have come back."""
        ...

    def receive(self, specs: Sequence[TensorSpec], frames: Sequence[Buffer]) -> Arrival:
        """Start receiving the tensors of the next message.

        Args:
            specs: of the tensors that are not empty.
            frames: that came behind the header.

        Raises:
            LinkError: the other end is gone.
            MailboxError: the frames are not what this carrier sends.
        """
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


def flat_bytes(tensor: Tensor) -> Tensor:
    """Return the elements in C order as bytes (N,), on their device; copied only if need be."""
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    # One element of a view may keep the view's stride, which means nothing but stops `view`.
    flat = flat.as_strided((1,), (1,)) if flat.numel() == 1 else flat.contiguous()
    return flat.view(torch.uint8)
