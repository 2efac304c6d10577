"""The Ray shell of a stage: it opens boxes, runs the runner, answers questions. Nothing else.

Three kinds of threads: one computes (every method without a group, in the order of the calls),
one answers the driver while it does (`control`), one takes messages of the `ray` wire (`mail`).
"""

from __future__ import annotations

import functools
import os
import random
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import ray
import torch

from actors.boxes import Boxes
from actors.carrier import CarrierKind, TensorCarrier
from actors.device_copies import DeviceCopies
from actors.errors import LinkError, MechanismError
from actors.inline_carrier import INLINE
from actors.ipc_carrier import CudaMemory, IpcCarrier
from actors.local_wire import local_wire
from actors.mailbox import FeatureBox, Inbox, Outbox, ReceiveEnd, SendEnd
from actors.messages import Message
from actors.part_writer import PartWriter, WritePart
from actors.prefetch import Prefetcher
from actors.probes import MessageTimes, StageTimes, echo, probe, time_stage
from actors.process_groups import Membership, Place, open_store
from actors.program import StageProgram
from actors.protocols import StageRule, Tensors
from actors.ray_metrics import StageMetrics
from actors.ray_wire import RayReceiveEnd, RaySendEnd
from actors.runner import StageRunner
from actors.source import CheckpointPlan, Source
from actors.wiring import Link
from actors.zmq_wire import Address, ZmqHub, ZmqReceiveEnd

__all__ = ["Feed", "Home", "Keeping", "RuleFactory", "StageActor", "StageWorker", "WireKind"]

RuleFactory = Callable[[], StageRule]
WireKind = Literal["zmq", "ray"]
_HELLO_S = 60.0
_CREDITS_S = 10.0


@dataclass(frozen=True, slots=True)
class Home:
    """Where an actor lives, its public key for encrypted links, the cores that it may run on, and
    the card's own name for the GPU that it computes on, the same in every process; empty: none.
    """

    node_id: str
    host: str
    pid: int
    public_key: bytes
    cores: int = 1
    gpu: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What stage 0 reads, see `actors.source.Source`."""

    train: Iterable[Any]
    test: Iterable[Any] | None
    epochs: int
    parts: int
    evaluate_every: int
    recheck_every: int = 0
    recheck_ages: tuple[int, ...] = ()
    seed: int = 0
    checkpoints: CheckpointPlan = field(default_factory=CheckpointPlan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How one stage keeps its parts of checkpoints, and where it goes on.

    Args:
        name: of its parts.
        write: (step, name, content) -> what the driver wants to know of a part.
        resume: returns the part to go on from; None: from the beginning.
    """

    name: str
    write: WritePart
    resume: Callable[[], Mapping[str, Any]] | None = None


class StageWorker:
    """One stage of a pipeline, in the process of its actor.

    Args:
        stage: 0 at the input.
        threads: of torch's operators in this process.
        seed: of the process's global generators, which a user's batches may draw from.
        tags: `method` and `run`, of the stage's metrics.
    """

    def __init__(
        self, stage: int, threads: int, seed: int, tags: Mapping[str, str] | None = None
    ) -> None:
        self._stage = stage
        self._threads = threads
        self._hub: ZmqHub | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._labels: dict[int, Outbox] = {}
        self._receivers: dict[str, RayReceiveEnd] = {}
        self._senders: dict[str, RaySendEnd] = {}
        self._accepting: dict[str, ZmqReceiveEnd] = {}
        self._store: Any = None
        self._membership: Membership | None = None
        self._device_copies: DeviceCopies | None = None
        self._rule: StageRule | None = None
        self._runner: StageRunner | None = None
        self._rows: list[dict[str, Any]] = []
        self._written: list[tuple[int, Any]] = []
        self._metrics = StageMetrics(stage, tags or {})
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
        return Home(node_id, host, os.getpid(), self._hub.public_key, cores or 1, _gpu())

    def open_store(self, host: str) -> Place:
        """Open the store at which the stages meet whose links torch.distributed carries."""
        self._store, place = open_store(host)
        return place

    def join(self, place: Place, stages: int, links: Sequence[Link]) -> None:
        """Meet the other stages; `links` are all that torch.distributed carries."""
        if self._membership is not None:
            self._membership.close()
        self._membership = Membership(place, self._stage, stages, links, self._copies())

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
            self._keep(link, sending)
        elif wire == "ray":
            end = self._receivers[link.name] = RayReceiveEnd(link.name, sender)
        else:
            peers: Collection[bytes] = {key}
            address, end = self._its_hub().listen(link.name, link.capacity, transport, peers)
            self._accepting[link.name] = end
        self._inboxes[link.box] = Inbox(link.name, end, link.capacity, self._carrier(link, carrier))
        return address

    def connect(
        self, link: Link, address: Address | None, receiver: Any, carrier: CarrierKind = "inline"
    ) -> None:
        """Open the sender's end of a link to the actor `receiver`."""
        end: SendEnd
        if address is None:
            end = self._senders[link.name] = RaySendEnd(link.name, receiver)
        else:
            end = self._its_hub().connect(link.name, link.capacity, address)
        self._keep(link, end, self._carrier(link, carrier))

    def accept(self) -> None:
        """Wait until every sender is there."""
        for end in self._accepting.values():
            end.accept(_HELLO_S)
        self._accepting = {}
        self._its_hub().settle()

    @ray.method(concurrency_group="mail")
    def deliver(self, name: str, *frames: Any) -> None:
        """Take a message of the `ray` wire in."""
        self._receivers[name].delivered([frame.data for frame in frames])

    @ray.method(concurrency_group="mail")
    def credit(self, name: str, count: int) -> None:
        """Take credits of the `ray` wire in."""
        self._senders[name].credited(count)

    # ------------------------------------------------------------------ work

    def load(self, rule: RuleFactory) -> None:
        """Build the stage's rule."""
        torch.set_num_threads(self._threads)
        self._rule = rule()

    def measure(self, inputs: Tensors, repeats: int) -> StageTimes:
        """Time the stage, see `actors.probes`."""
        return time_stage(self._its_rule(), inputs, repeats)

    def measure_blocks(
        self, blocks: Sequence[RuleFactory], inputs: Sequence[Tensors], repeats: int
    ) -> list[StageTimes]:
        """Time each block of a chain as a stage, on this stage's device."""
        return [
            time_stage(block(), given, repeats) for block, given in zip(blocks, inputs, strict=True)
        ]

    def time_messages(self, payload: Tensors, repeats: int) -> MessageTimes:
        """Return what a message with `payload` to the stage above and back costs."""
        return probe(
            functools.partial(self._put, "features"),
            functools.partial(self._take, "gradients"),
            payload,
            repeats,
        )

    def echo_messages(self, repeats: int) -> None:
        """Send what `time_messages` of the stage below sends back to it."""
        put = functools.partial(self._put, "gradients")
        echo(put, functools.partial(self._take, "features"), repeats)

    def run(self, program: StageProgram, feed: Feed | None, keeping: Keeping | None) -> None:
        """Run the stage to its end, or until `stop`."""
        part = None if keeping is None or keeping.resume is None else keeping.resume()
        writer = None if keeping is None else PartWriter(keeping.name, keeping.write, self._wrote)
        try:
            self._runner = StageRunner(
                program, self._its_rule(), self._boxes(feed, part), self._rows.append, writer, part
            )
            try:
                self._runner.run(self._stop.is_set)
            except LinkError:
                # The neighbours of a stage that is told to stop may have closed their ends.
                if not self._stop.is_set():
                    raise
            if writer is not None:
                writer.settle()
        finally:
            if writer is not None:
                writer.close()

    def state(self) -> dict[str, torch.Tensor]:
        """Return weights and buffers of the stage."""
        return dict(self._its_rule().state())

    def remains(self) -> dict[str, int]:
        """Return what is left in boxes and loop after a run: nothing if it ended well."""
        return {} if self._runner is None else self._runner.remains(_CREDITS_S)

    def close(self) -> None:
        """Close every box."""
        if self._hub is not None:
            self._hub.close()
        if self._membership is not None:
            self._membership.close()

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, list[dict[str, Any]], list[tuple[int, Any]]]:
        """Return how many batches have entered the stage, and what is new since the last call:
        rows, and parts of checkpoints, each with its step.
        """
        # The parts first: a row that a checkpoint has behind it is then never later than it.
        written = _emptied(self._written)
        rows = _emptied(self._rows)
        if self._runner is None:
            return 0, rows, written
        self._metrics.publish(self._runner, rows)
        return self._runner.loop.batches, rows, written

    @ray.method(concurrency_group="control")
    def alive(self) -> None:
        """Answer at once, unless the process is gone."""

    @ray.method(concurrency_group="control")
    def cut(self, name: str) -> None:
        """Cut a link that this stage receives, as a pulled cable would: for tests of recovery."""
        self._its_hub().cut(name)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Let `run` end soon."""
        self._stop.set()

    # ------------------------------------------------------------------ inside

    def _wrote(self, step: int, about: Any) -> None:
        self._written.append((step, about))

    def _boxes(self, feed: Feed | None, part: Mapping[str, Any] | None) -> Boxes:
        features: FeatureBox
        if feed is None:
            features = self._inboxes["features"]
        else:
            *local_labels, labels = [box for _, box in sorted(self._labels.items())]
            source = Source(
                feed.train,
                feed.test,
                epochs=feed.epochs,
                parts=feed.parts,
                labels=labels,
                local_labels=local_labels,
                evaluate_every=feed.evaluate_every,
                recheck_every=feed.recheck_every,
                recheck_ages=feed.recheck_ages,
                seed=feed.seed,
                checkpoints=feed.checkpoints,
                start=None if part is None else part["source"],
            )
            features = self._ahead(source)
        targets = self._inboxes.get("labels")
        return Boxes(
            features_in=features,
            labels_in=None if targets is None else self._ahead(targets),
            gradients_in=self._inboxes.get("gradients"),
            features_out=self._outboxes.get("features"),
            gradients_out=self._outboxes.get("gradients"),
        )

    def _carrier(self, link: Link, kind: CarrierKind) -> TensorCarrier:
        if kind == "inline":
            return INLINE
        if kind == "ipc":
            copies = self._copies()
            return IpcCarrier(link.name, copies, CudaMemory(copies.device))
        if self._membership is None:
            raise MechanismError(f"stage {self._stage} has not met the others yet: call join first")
        return self._membership.carriers[link.name]

    def _copies(self) -> DeviceCopies:
        """Return the one of this process, made when it is first asked for."""
        if self._device_copies is None:
            self._device_copies = DeviceCopies(torch.device("cuda" if _has_gpu() else "cpu"))
        return self._device_copies

    def _ahead(self, box: FeatureBox) -> FeatureBox:
        """Return a box whose batches of the host are on their way to the GPU, if there is one."""
        return Prefetcher(box, self._copies()) if _has_gpu() else box

    def _keep(self, link: Link, end: SendEnd, carrier: TensorCarrier = INLINE) -> None:
        box = Outbox(link.name, end, link.capacity, carrier)
        if link.box == "labels":
            # Only the first stage has these, one for every stage that needs labels.
            self._labels[link.target] = box
        else:
            self._outboxes[link.box] = box

    def _put(self, box: str, message: Message) -> None:
        while not self._outboxes[box].ready(1.0):
            self._check_stopped()
        self._outboxes[box].put(message)

    def _take(self, box: str) -> Message:
        while (message := self._inboxes[box].take(1.0)) is None:
            self._check_stopped()
        return message

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise MechanismError(f"stage {self._stage} was stopped")

    def _its_rule(self) -> StageRule:
        if self._rule is None:
            raise MechanismError(f"stage {self._stage} has no rule yet: call load first")
        return self._rule

    def _its_hub(self) -> ZmqHub:
        if self._hub is None:
            raise MechanismError(f"stage {self._stage} has no sockets yet: call home first")
        return self._hub


def _has_gpu() -> bool:
    return bool(ray.get_gpu_ids())


def _gpu() -> str:
    """Return the name that the card of this actor has everywhere, empty without one."""
    return str(torch.cuda.get_device_properties(0).uuid) if _has_gpu() else ""


def _emptied(items: list[Any]) -> list[Any]:
    """Take all that is in a list to which another thread appends."""
    taken = []
    while items:
        taken.append(items.pop(0))
    return taken


StageActor: Any = ray.remote(concurrency_groups={"control": 1, "mail": 1})(StageWorker)  # type: ignore[call-overload]
"""`StageWorker` as a Ray actor: options, then `remote(stage, threads, seed, tags)`."""
