"""What carries tensors beside the wire, with fakes where a GPU would be."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from actors.errors import LinkError, MailboxError, MechanismError
from actors.pipeline.prefetch import Prefetcher
from actors.units import Tensors
from actors.wires.carrier import TensorSpec
from actors.wires.device_copies import DeviceCopies, OnTheWay
from actors.wires.inline_carrier import INLINE
from actors.wires.ipc_carrier import IpcCarrier
from actors.wires.link import Link, carrier_of
from actors.wires.local_wire import local_wire
from actors.wires.mailbox import BoxStatistics, Inbox, Outbox
from actors.wires.messages import Kind, Message
from raylab import ConfigError, NonFiniteLossError
from raylab.algorithms.stage.late_losses import LateLosses
from raylab.drivers.pipeline.settings import PipelineSettings

pytestmark = pytest.mark.unit

CPU = DeviceCopies(torch.device("cpu"))


class Shelf:
    """Stands for the memory of a card: what is put on it by one process is seen by another."""

    def __init__(self) -> None:
        self.there: dict[int, Tensor] = {}

    def share(self, tensor: Tensor) -> Mapping[str, Any]:
        self.there[len(self.there)] = tensor
        return {"place": len(self.there) - 1}

    def open(self, handle: Mapping[str, Any], spec: TensorSpec) -> Tensor:
        tensor = self.there[handle["place"]]
        assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape)
        return tensor


def boxes(sender: Any, receiver: Any, shuffle: random.Random | None = None) -> Any:
    sending, receiving = local_wire(shuffle)
    return Outbox("link", sending, 3, sender), Inbox("link", receiving, 3, receiver)


def ipc_pair(shelf: Shelf) -> tuple[IpcCarrier, IpcCarrier]:
    return IpcCarrier("link", CPU, shelf), IpcCarrier("link", CPU, shelf)


def test_shared_memory_arrives_as_a_copy_and_is_kept_until_the_credit():
    sender, receiver = ipc_pair(Shelf())
    outbox, inbox = boxes(sender, receiver)
    sent = (torch.arange(6.0).reshape(2, 3).T, None, torch.empty(0, 2), torch.tensor([1 + 2j]))
    outbox.put(Message(Kind.BATCH, 0, sent))
    outbox.put(Message(Kind.EPOCH, 0))
    outbox.put(Message(Kind.BATCH, 1, (torch.ones(2),)))
    assert sender.held == 3
    message = inbox.take()
    assert message is not None
    for got, there in zip(message.tensors, sent, strict=True):
        assert (got is None) is (there is None)
        if got is not None and there is not None:
            assert torch.equal(got, there)
            assert got.is_contiguous()
            assert not got.numel() or got.data_ptr() != there.data_ptr()
    assert outbox.ready()
    assert sender.held == 2
    assert inbox.take() == Message(Kind.EPOCH, 0)
    assert inbox.take() is not None
    assert outbox.ready()
    assert sender.held == 0


def test_a_sender_that_is_gone_is_a_cut_link():
    sender, receiver = ipc_pair(Shelf())

    def gone(*_: Any) -> Tensor:
        raise RuntimeError("CUDA error: invalid resource handle")

    receiver._memory.open = gone  # type: ignore[method-assign]
    frames = sender.send([torch.ones(2)])
    with pytest.raises(LinkError, match="link was cut: CUDA error"):
        receiver.receive([TensorSpec(torch.float32, (2,), carried=True)], frames)


class InOrder:
    """A carrier that must be asked in the order of the sends, as NCCL must."""

    carries = True

    def __init__(self, queue: list[list[Tensor]]) -> None:
        self.queue = queue

    def send(self, tensors: Sequence[Tensor]) -> list[Any]:
        self.queue.append(list(tensors))
        return []

    def taken(self, count: int) -> None: ...

    def receive(self, specs: Sequence[TensorSpec], frames: Sequence[Any]) -> Any:
        tensors = self.queue.pop(0)
        assert [tuple(t.shape) for t in tensors] == [spec.shape for spec in specs]
        return INLINE.receive(specs, INLINE.send(tensors))

    def close(self) -> None: ...


def test_tensors_are_asked_for_in_the_order_of_their_headers_however_these_come():
    queue: list[list[Tensor]] = []
    outbox, inbox = boxes(InOrder(queue), InOrder(queue), random.Random(3))
    got = []
    for n in range(40):
        while not outbox.ready():
            message = inbox.take()
            if message is not None:
                got.append(message)
        outbox.put(Message(Kind.BATCH, n, (torch.full((n + 1,), float(n)),)))
    while len(got) < 40:
        message = inbox.take()
        if message is not None:
            got.append(message)
    for n, message in enumerate(got):
        assert torch.equal(message.tensors[0], torch.full((n + 1,), float(n)))


def test_two_ends_with_different_carriers_are_told_so():
    outbox, inbox = boxes(InOrder([]), INLINE)
    outbox.put(Message(Kind.BATCH, 0, (torch.ones(1),)))
    with pytest.raises(MailboxError, match="different carriers"):
        inbox.take()


# ------------------------------------------------------------------ which carrier

CARD, OTHER, ELSEWHERE, NONE = ("n1", "gpu-a"), ("n1", "gpu-b"), ("n2", "gpu-c"), ("n1", "")


@pytest.mark.parametrize(
    ("source", "target", "asked", "box", "expected"),
    [
        (CARD, CARD, "auto", "features", "ipc"),
        (CARD, OTHER, "auto", "gradients", "distributed"),
        (CARD, ELSEWHERE, "auto", "features", "distributed"),
        (NONE, NONE, "auto", "features", "inline"),
        (CARD, NONE, "auto", "features", "inline"),
        (CARD, CARD, "auto", "labels", "inline"),
        (CARD, CARD, "inline", "features", "inline"),
        (NONE, NONE, "distributed", "features", "distributed"),
        (CARD, CARD, "ipc", "features", "ipc"),
    ],
)
def test_the_carrier_follows_from_where_the_stages_live(source, target, asked, box, expected):
    link = Link(box=box, source=0, target=1, capacity=2, inline=box == "labels")
    assert carrier_of(link, source, target, asked) == expected


@pytest.mark.parametrize(
    ("source", "target", "asked", "says"),
    [
        (CARD, OTHER, "ipc", "do not compute on the same one"),
        (NONE, NONE, "ipc", "do not compute on the same one"),
        (CARD, CARD, "distributed", "share a card"),
        (CARD, NONE, "distributed", "at both ends"),
    ],
)
def test_a_carrier_that_cannot_be_is_refused(source, target, asked, says):
    link = Link(box="features", source=0, target=1, capacity=2)
    with pytest.raises(MechanismError, match=says):
        carrier_of(link, source, target, asked)


def test_carried_tensors_need_the_wire_that_tells_of_cuts():
    with pytest.raises(ConfigError, match="carrier=ipc goes beside wire=zmq"):
        PipelineSettings(method="adl", stages=2, wire="ray", carrier="ipc")
    with pytest.raises(ConfigError, match="carrier must be auto or inline"):
        PipelineSettings(method="adl", stages=2, carrier="nccl")  # type: ignore[arg-type]


# ------------------------------------------------------------------ one batch ahead


class Belt:
    """A box that notes what has been taken from it."""

    name = "belt"

    def __init__(self, *messages: Message | None) -> None:
        self.statistics = BoxStatistics()
        self.left = list(messages)

    def take(self, timeout_s: float = 0.0) -> Message | None:
        return self.left.pop(0)

    def close(self) -> None: ...


class Noted(DeviceCopies):
    """Notes which copies have begun and ended."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.story: list[str] = []

    def begin(self, tensors: Tensors) -> OnTheWay:
        self.story += [f"begin {float(t)}" for t in tensors if t is not None]
        return super().begin(tensors)

    def finish(self, coming: OnTheWay) -> Tensors:
        self.story += [f"finish {float(t)}" for t in coming.tensors if t is not None]
        return super().finish(coming)


def test_the_next_batch_is_on_its_way_while_this_one_is_handed_out():
    copies = Noted()
    sent = [Message(Kind.BATCH, n, (torch.tensor(float(n)),)) for n in range(3)]
    box = Prefetcher(Belt(sent[0], sent[1], None, sent[2], None), copies)
    assert box.take() is not None
    assert copies.story == ["begin 0.0", "begin 1.0", "finish 0.0"]
    assert [box.take(), box.take()] == sent[1:]
    assert copies.story[3:] == ["finish 1.0", "begin 2.0", "finish 2.0"]


def test_nothing_is_taken_from_behind_a_marker_before_the_marker_has_its_turn():
    belt = Belt(
        Message(Kind.BATCH, 0, (torch.tensor(0.0),)),
        Message(Kind.CHECKPOINT, 1),
        Message(Kind.BATCH, 1, (torch.tensor(1.0),)),
        None,
    )
    box = Prefetcher(belt, CPU)
    kinds = []
    for left in (2, 2, 0):
        message = box.take()
        assert message is not None
        kinds.append(message.kind)
        assert len(belt.left) == left
    assert kinds == [Kind.BATCH, Kind.CHECKPOINT, Kind.BATCH]


# ------------------------------------------------------------------ losses that stay on the GPU


def losses(every: int) -> tuple[LateLosses, list[tuple[float, int, int | None]]]:
    seen: list[tuple[float, int, int | None]] = []
    late = LateLosses(torch.device("cpu"), lambda *each: seen.append(each))
    late.every = every
    return late, seen


def test_losses_are_looked_at_together_and_in_order():
    late, seen = losses(every=3)
    late.came(0, torch.tensor(0.5), 1, 4, torch.tensor(2))
    late.came(1, torch.tensor(6.0), 4, 4, None)
    assert not seen
    late.came(2, torch.tensor(0.25), 1, 2, torch.tensor(1))
    assert seen == [(0.5, 4, 2), (1.5, 4, None), (0.25, 2, 1)]
    late.fetch()
    assert len(seen) == 3


def test_a_loss_that_is_not_finite_is_told_late_with_its_own_batch():
    late, _ = losses(every=16)
    for batch in range(7):
        loss = F.relu(torch.tensor(float("nan") if batch == 4 else 1.0))
        late.came(batch, loss, 1, 2, None)
    with pytest.raises(NonFiniteLossError, match="batch 4 gave nan"):
        late.fetch()


def test_on_the_cpu_every_loss_is_looked_at_at_once():
    assert LateLosses(torch.device("cpu"), print).every == 1
    assert LateLosses(torch.device("cuda"), print).every > 1
