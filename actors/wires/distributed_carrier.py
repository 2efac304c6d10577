"""Tensors by torch.distributed point to point: NCCL between GPUs, gloo between CPUs.

Every directed link has a process group of its own, so that features never wait for gradients, and
the order of its operations is that of the headers: a send is started before its header leaves, a
receive when the header has come, so that a receiver never waits for what was not sent.

Neither end holds up its stage. Sends are kept until the receiver's credit is back and they are
complete. Receives are ordered beside the compute, on the side stream; taking a message makes the
compute wait for them, on a GPU without stopping the host.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Buffer

from actors.errors import LinkError, MailboxError
from actors.wires.carrier import TensorSpec, flat_bytes
from actors.wires.device_copies import DeviceCopies

__all__ = ["DistributedCarrier"]


class DistributedCarrier:
    """One end of a link.

    Args:
        name: of the link.
        group: of its two processes.
        peer: rank of the other one.
        copies: of this process.
    """

    carries = True

    def __init__(
        self, name: str, group: dist.ProcessGroup, peer: int, copies: DeviceCopies
    ) -> None:
        self._name = name
        self._group: dist.ProcessGroup | None = group
        self._peer = peer
        self._copies = copies
        self._sent: deque[_Sent] = deque()
        self._credited: list[_Sent] = []

    @property
    def held(self) -> int:
        """Messages whose tensors are kept here."""
        return len(self._sent) + len(self._credited)

    def send(self, tensors: Sequence[Tensor]) -> list[Buffer]:
        """Start sending; the tensors are kept until their message's credit is back."""
        flats = [flat_bytes(tensor.to(self._copies.device)) for tensor in tensors]
        with _told(self._name):
            works = [dist.isend(flat, self._peer, group=self._its_group()) for flat in flats]
        self._sent.append(_Sent(flats, works))
        return []

    def taken(self, count: int) -> None:
        """Let go of messages that were taken, once their sends are complete."""
        self._credited += [self._sent.popleft() for _ in range(count)]
        with _told(self._name):
            self._credited = [each for each in self._credited if not each.complete()]

    def receive(self, specs: Sequence[TensorSpec], frames: Sequence[Buffer]) -> _Arrival:
        """Allocate on this stage's device and start receiving."""
        if frames:
            raise MailboxError(f"{self._name}: {len(frames)} frames came beside carried tensors")
        device = self._copies.device
        with self._copies.aside():
            flats = [torch.empty(spec.bytes, dtype=torch.uint8, device=device) for spec in specs]
            with _told(self._name):
                works = [dist.irecv(flat, self._peer, group=self._its_group()) for flat in flats]
        return _Arrival(self._name, specs, flats, works, self._copies)

    def close(self) -> None:
        """Forget what is under way; the group belongs to the process."""
        self._group = None
        self._sent.clear()
        self._credited.clear()

    def _its_group(self) -> dist.ProcessGroup:
        if self._group is None:
            raise MailboxError(f"the link {self._name} is closed at this end")
        return self._group


class _Sent:
    """The tensors of one message and the sends that read them."""

    def __init__(self, flats: list[Tensor], works: Sequence[dist.Work | None]) -> None:
        self._flats = flats
        self._works = [work for work in works if work is not None]

    def complete(self) -> bool:
        for flat, work in zip(self._flats, self._works, strict=True):
            if flat.device.type == "cpu":
                # gloo learns that a send is complete by waiting only; what was taken is.
                work.wait()
            elif not work.is_completed():
                return False
        return True


class _Arrival:
    """Receives that were started."""

    def __init__(
        self,
        name: str,
        specs: Sequence[TensorSpec],
        flats: list[Tensor],
        works: Sequence[dist.Work | None],
        copies: DeviceCopies,
    ) -> None:
        self._name = name
        self._specs = specs
        self._flats = flats
        self._works = works
        self._copies = copies

    def wait(self) -> list[Tensor]:
        with _told(self._name):
            for work in self._works:
                if work is not None:
                    # On a GPU the compute stream waits, on the CPU this thread.
                    work.wait()
        self._copies.adopt(self._flats)
        return [
            flat.view(spec.dtype).reshape(spec.shape)
            for flat, spec in zip(self._flats, self._specs, strict=True)
        ]


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what torch raises for a peer that is gone into the link's error."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LinkError(f"the link {name} was cut: its tensors cannot pass: {first}") from error
