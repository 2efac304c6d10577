"""The torch.distributed membership of a stage's process: who meets where, and one group a link.

The first stage holds the TCPStore at which all meet; its address goes through Ray, as those of the
wire do. On one node the store, gloo and NCCL listen on the loopback only. Between nodes they
listen on the node's address, and neither encrypts nor authenticates, unlike the wire: a cluster's
network must be trusted for tensors to be carried over it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from actors.errors import LinkError, MechanismError
from actors.wires.carrier import TensorSpec
from actors.wires.device_copies import DeviceCopies
from actors.wires.distributed_carrier import DistributedCarrier
from actors.wires.link import Link

__all__ = ["LOOPBACK", "Membership", "Place", "open_store"]

LOOPBACK = "127.0.0.1"
_MEET_S = 60.0
_MOVE_S = {"gloo": 30.0, "nccl": 300.0}
"""Longest time that one tensor may take. gloo tells at once that a peer has died, but not always
if that was in the middle of a tensor: then a stage that waits for it gives up after this time.
NCCL counts the computation before a send, too."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the store of a pipeline listens."""

    host: str
    port: int


def open_store(host: str) -> tuple[TCPStore, Place]:
    """Open the store at which the stages meet, on this address alone."""
    # The store itself would listen on every address of the machine.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        store = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=_MEET_S),
            master_listen_fd=listener.detach(),
        )
    return store, Place(host, port)


class Membership:
    """One stage among all, and the carriers of its links.

    All stages make theirs at the same time, with the same links in the same order: each link is
    greeted over, one after another, so that none waits for a stage that waits for it.

    Args:
        place: where the store is.
        stage: this one, its rank.
        stages: K.
        links: that torch.distributed carries, all of the pipeline's.
        copies: of this process.

    Raises:
        LinkError: the others did not come, or a greeting did not.
    """

    def __init__(
        self, place: Place, stage: int, stages: int, links: Sequence[Link], copies: DeviceCopies
    ) -> None:
        if dist.is_initialized():
            raise MechanismError(f"stage {stage} is a member already: close that one first")
        if place.host == LOOPBACK:
            _stay_on_loopback()
        self.carriers: dict[str, DistributedCarrier] = {}
        backend = "nccl" if copies.device.type == "cuda" else "gloo"
        try:
            self._meet(place, stage, stages)
            # Every stage makes every group, in this order, as torch wants it.
            groups = [self._group(link, backend) for link in links]
            for link, group in zip(links, groups, strict=True):
                if stage in (link.source, link.target):
                    self._open(link, group, stage, copies)
        except (RuntimeError, LinkError) as error:
            self.close()
            raise LinkError(f"the stages did not meet at {place}: {error}") from error

    def close(self) -> None:
        """Leave: the other ends of the links are told by broken connections. Never raises."""
        for carrier in self.carriers.values():
            carrier.close()
        self.carriers = {}
        with contextlib.suppress(RuntimeError):
            if dist.is_initialized():
                dist.destroy_process_group()

    @staticmethod
    def _meet(place: Place, stage: int, stages: int) -> None:
        store = TCPStore(
            place.host,
            place.port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=_MEET_S),
        )
        # gloo for the meeting, whatever carries the tensors: it needs no GPU.
        dist.init_process_group(
            "gloo",
            store=store,
            rank=stage,
            world_size=stages,
            timeout=timedelta(seconds=_MEET_S),
        )

    @staticmethod
    def _group(link: Link, backend: str) -> dist.ProcessGroup:
        group: dist.ProcessGroup = dist.new_group(
            sorted((link.source, link.target)),
            timeout=timedelta(seconds=_MOVE_S[backend]),
            backend=backend,
        )
        return group

    def _open(self, link: Link, group: dist.ProcessGroup, stage: int, copies: DeviceCopies) -> None:
        peer = link.target if stage == link.source else link.source
        carrier = self.carriers[link.name] = DistributedCarrier(link.name, group, peer, copies)
        # NCCL makes its connection at the first message, and both ends wait for it: now.
        greeting = torch.ones(1, device=copies.device)
        if stage == link.source:
            carrier.send([greeting])
            carrier.taken(1)
        else:
            spec = TensorSpec(greeting.dtype, (1,), carried=True)
            (got,) = carrier.receive([spec], ()).wait()
            if float(got) != 1:
                raise LinkError(f"{link.name} was greeted with {float(got)}")


def _stay_on_loopback() -> None:
    """Let gloo and NCCL listen on the loopback, unless the user has named interfaces."""
    name = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, name)
