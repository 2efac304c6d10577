"""What every actor of a group has: boxes that others open to it and it opens to others, a way to
be asked while it computes, and an end.

Three kinds of threads: one computes (every method without a group, in the order of the calls),
one answers the driver while it does (`control`), one takes messages of the `ray` wire (`mail`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import ray
import torch

from actors.errors import LinkError, MechanismError
from actors.groups.part_writer import Keeping, PartWriter
from actors.wires.carrier import CarrierKind, TensorCarrier
from actors.wires.device_copies import DeviceCopies
from actors.wires.inline_carrier import INLINE
from actors.wires.ipc_carrier import CudaMemory, IpcCarrier
from actors.wires.link import Link, WireKind
from actors.wires.local_wire import local_wire
from actors.wires.mailbox import Inbox, Outbox, ReceiveEnd, SendEnd
from actors.wires.process_groups import Membership, Place, open_store
from actors.wires.ray_wire import RayReceiveEnd, RaySendEnd
from actors.wires.zmq_wire import Address, ZmqHub, ZmqReceiveEnd

__all__ = ["GROUPS", "Home", "Member", "has_gpu"]

GROUPS = {"control": 1, "mail": 1}
"""Ray's concurrency groups of a member, with their threads."""
_HELLO_S = 60.0


@dataclass(frozen=True, slots=True)
class Home:
    """Where an actor lives, its public key for encrypted links, the cores that it may run on, and
    the card's own name for the GPU that it computes on, the same in every process; empty: none.
    The niceness of its process comes last.
    """

    node_id: str
    host: str
    pid: int
    public_key: bytes
    cores: int = 1
    gpu: str = ""
    niceness: int = 0


class Member:
    """One actor of a group, in its process.

    Args:
        index: in the group, from 0.
        title: what it is called in errors, e.g. "stage 2".
        threads: of torch's operators in this process.
        seed: of the process's global generators.
    """

    def __init__(self, index: int, title: str, threads: int, seed: int) -> None:
        self._index = index
        self._title = title
        self._threads = threads
        self._hub: ZmqHub | None = None
        self._inboxes: dict[tuple[str, int], Inbox] = {}
        """By what they carry and who sends."""
        self._outboxes: dict[tuple[str, int], Outbox] = {}
        """By what they carry and who receives."""
        self._receivers: dict[str, RayReceiveEnd] = {}
        self._senders: dict[str, RaySendEnd] = {}
        self._accepting: dict[str, ZmqReceiveEnd] = {}
        self._store: Any = None
        self._membership: Membership | None = None
        self._device_copies: DeviceCopies | None = None
        self._rows: list[dict[str, Any]] = []
        self._written: list[tuple[int, Any]] = []
        self._stop = threading.Event()
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    # ------------------------------------------------------------------ wiring

    def home(self) -> Home:
        """Return where this actor lives."""
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._hub = ZmqHub(host)
        node_id = ray.get_runtime_context().get_node_id()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        return Home(node_id, host, os.getpid(), self._hub.public_key, cores or 1, _gpu(), nice)

    def open_store(self, host: str) -> Place:
        """Open the store at which the members meet whose links torch.distributed carries."""
        self._store, place = open_store(host)
        return place

    def join(self, place: Place, members: int, links: Sequence[Link]) -> None:
        """Meet the other members; `links` are all that torch.distributed carries."""
        if self._membership is not None:
            self._membership.close()
        self._membership = Membership(place, self._index, members, links, self._copies())

    def listen(
        self,
        link: Link,
        wire: WireKind,
        transport: Literal["ipc", "tcp"],
        sender: Any,
        key: bytes,
        carrier: CarrierKind = "inline",
    ) -> Address | None:
        """Open the receiver's end of a link from the actor `sender` with public key `key`."""
        end: ReceiveEnd
        address = None
        if link.source == link.target:
            sending, end = local_wire()
            self._outboxes[link.box, link.target] = Outbox(link.name, sending, link.capacity)
        elif wire == "ray":
            end = self._receivers[link.name] = RayReceiveEnd(link.name, sender, self._ring)
        else:
            peers: Collection[bytes] = {key}
            address, end = self._its_hub().listen(link.name, link.capacity, transport, peers)
            self._accepting[link.name] = end
        if before := self._inboxes.pop((link.box, link.source), None):
            before.close()
        self._inboxes[link.box, link.source] = Inbox(
            link.name, end, link.capacity, self._carrier(link, carrier)
        )
        return address

    def connect(
        self, link: Link, address: Address | None, receiver: Any, carrier: CarrierKind = "inline"
    ) -> None:
        """Open the sender's end of a link to the actor `receiver`."""
        end: SendEnd
        if address is None:
            end = self._senders[link.name] = RaySendEnd(link.name, receiver, self._ring)
        else:
            end = self._its_hub().connect(link.name, link.capacity, address)
        if before := self._outboxes.pop((link.box, link.target), None):
            before.close()
        self._outboxes[link.box, link.target] = Outbox(
            link.name, end, link.capacity, self._carrier(link, carrier)
        )

    def accept(self, patience_s: float = _HELLO_S) -> None:
        """Wait until every sender is there."""
        accepting, self._accepting = self._accepting, {}
        for end in accepting.values():
            end.accept(patience_s)
        self._its_hub().settle()

    @ray.method(concurrency_group="mail")
    def deliver(self, name: str, *frames: Any) -> None:
        """Take a message of the `ray` wire in."""
        self._receivers[name].delivered([frame.data for frame in frames])

    @ray.method(concurrency_group="mail")
    def credit(self, name: str, count: int) -> None:
        """Take credits of the `ray` wire in."""
        self._senders[name].credited(count)

    # ------------------------------------------------------------------ while it computes

    @ray.method(concurrency_group="control")
    def alive(self) -> None:
        """Answer at once, unless the process is gone."""

    @ray.method(concurrency_group="control")
    def cut(self, name: str) -> None:
        """Cut a link that is received here, as a pulled cable would: for tests of recovery."""
        self._its_hub().cut(name)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Let what runs end soon."""
        self._stop.set()
        self._ring()

    def renew(self, *arguments: Any) -> None:
        """Become a new member in the same process; `arguments` as of the constructor."""
        self.close()
        type(self).__init__(self, *arguments)
        gc.collect()

    def close(self) -> None:
        """Close every box."""
        if self._hub is not None:
            self._hub.close()
        if self._membership is not None:
            self._membership.close()

    # ------------------------------------------------------------------ for those who derive

    def _ring(self) -> None:
        """Something has come by the `ray` wire, or the end: wake a thread that waits elsewhere."""

    def _inbox(self, box: str) -> Inbox | None:
        """Return the one inbox of this name, None if there is none."""
        return next((each for (name, _), each in self._inboxes.items() if name == box), None)

    def _outbox(self, box: str) -> Outbox | None:
        """Return the one outbox of this name, None if there is none."""
        return next((each for (name, _), each in self._outboxes.items() if name == box), None)

    @contextlib.contextmanager
    def _keeping(self, keeping: Keeping | None) -> Iterator[PartWriter | None]:
        """Write this member's parts of checkpoints while it runs, and all of them before it ends.

        Who is told to stop may find the other ends of its links closed, which is no error then.
        """
        writer = None if keeping is None else PartWriter(keeping.name, keeping.write, self._wrote)
        try:
            try:
                yield writer
            except LinkError:
                if not self._stop.is_set():
                    raise
            if writer is not None:
                writer.settle()
        finally:
            if writer is not None:
                writer.close()

    def _news(self) -> tuple[list[dict[str, Any]], list[tuple[int, Any]]]:
        """Take the rows and the parts of checkpoints, each with its step, since the last call."""
        # The parts first: a row that a checkpoint has behind it is then never later than it.
        written = _emptied(self._written)
        return _emptied(self._rows), written

    def _copies(self) -> DeviceCopies:
        """Return the one of this process, made when it is first asked for."""
        if self._device_copies is None:
            self._device_copies = DeviceCopies(torch.device("cuda" if has_gpu() else "cpu"))
        return self._device_copies

    def _its_hub(self) -> ZmqHub:
        if self._hub is None:
            raise MechanismError(f"{self._title} has no sockets yet: call home first")
        return self._hub

    # ------------------------------------------------------------------ inside

    def _wrote(self, step: int, about: Any) -> None:
        self._written.append((step, about))

    def _carrier(self, link: Link, kind: CarrierKind) -> TensorCarrier:
        if kind == "inline":
            return INLINE
        if kind == "ipc":
            copies = self._copies()
            return IpcCarrier(link.name, copies, CudaMemory(copies.device))
        if self._membership is None:
            raise MechanismError(f"{self._title} has not met the others yet: call join first")
        return self._membership.carriers[link.name]


def has_gpu() -> bool:
    """Tell whether this actor has (a share of) a GPU."""
    return bool(ray.get_gpu_ids())


def _gpu() -> str:
    """Return the name that the card of this actor has everywhere, empty without one."""
    return str(torch.cuda.get_device_properties(0).uuid) if has_gpu() else ""


def _emptied(items: list[Any]) -> list[Any]:
    """Take all that is in a list to which another thread appends."""
    taken = []
    while items:
        taken.append(items.pop(0))
    return taken
