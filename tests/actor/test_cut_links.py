"""A link that is cut or damaged ends in an error with its name at both ends, never in a wait."""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import pickle
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from typing_extensions import Buffer

from actors.errors import CorruptMessageError, LinkError, MailboxError
from actors.wires.frames import encode
from actors.wires.mailbox import Inbox, Outbox
from actors.wires.messages import Kind, Message
from actors.wires.ray_wire import RayReceiveEnd, RaySendEnd
from actors.wires.zmq_ends import ZmqReceiveEnd, ZmqSendEnd
from actors.wires.zmq_wire import Address, ZmqHub

pytestmark = pytest.mark.actor

NAME = "features 0->1"
CUT = f"the link {NAME} was cut"
PATIENCE_S = 20.0
"""How long what must come may take on a busy machine."""
SHORT_S = 0.2
"""How long to look out for what must not come."""
Transport = Literal["ipc", "tcp"]
both = pytest.mark.parametrize("transport", ["ipc", "tcp"])


class Wired:
    """The two ends of one open link, each with its hub."""

    def __init__(self, transport: Transport, capacity: int = 3) -> None:
        self.receiver, self.sender = ZmqHub(), ZmqHub()
        self.address, self.target = self.receiver.listen(
            NAME, capacity, transport, {self.sender.public_key}
        )
        self.source = self.sender.connect(NAME, capacity, self.address)
        self.target.accept(PATIENCE_S)
        self.outbox = Outbox(NAME, self.source, capacity)
        self.inbox = Inbox(NAME, self.target, capacity)

    def put(self, *indices: int) -> None:
        for index in indices:
            assert self.outbox.ready(PATIENCE_S)
            self.outbox.put(Message(Kind.BATCH, index, (torch.full((1000,), float(index)),)))

    def take(self) -> int:
        message = self.inbox.take(PATIENCE_S)
        assert message is not None
        return message.index


@pytest.fixture
def wire() -> Iterator[Callable[..., Wired]]:
    made: list[Wired] = []

    def make(*options: Any) -> Wired:
        made.append(Wired(*options))
        return made[-1]

    yield make
    for wired in made:
        wired.sender.close()
        wired.receiver.close()


def fill(wired: Wired) -> None:
    """Spend every credit, so that the sender must wait."""
    wired.put(*range(wired.outbox.capacity))


def take_all(wired: Wired) -> None:
    while wired.inbox.take(PATIENCE_S) is not None:
        pass


def put_many(wired: Wired) -> None:
    for _ in range(100):
        assert wired.outbox.ready(PATIENCE_S)
        wired.outbox.put(Message(Kind.BATCH, 9))


# ------------------------------------------------------------------ cut


@both
def test_both_ends_of_a_cut_link_are_told_so_when_they_wait(wire, transport: Transport):
    wired = wire(transport)
    fill(wired)
    while wired.inbox.statistics.messages < 3:
        wired.take()
        wired.put(3)
    wired.receiver.cut(NAME)
    with pytest.raises(LinkError, match=f"{CUT}: its other end was closed, its process died"):
        take_all(wired)
    with pytest.raises(LinkError, match=CUT):
        put_many(wired)


@both
def test_a_cut_ends_a_wait_that_has_begun(wire, transport: Transport):
    wired = wire(transport)
    raised: list[MailboxError] = []

    def wait() -> None:
        try:
            wired.inbox.take(100 * PATIENCE_S)
        except MailboxError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wired.receiver.cut(NAME)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert type(raised[0]) is LinkError


@both
def test_what_came_before_the_end_is_handed_out_first(wire, transport: Transport):
    wired = wire(transport)
    wired.put(0, 1, 2)
    wired.sender.close()
    assert [wired.take() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LinkError, match=CUT):
        wired.inbox.take(PATIENCE_S)
    # Told once, it stays so, and does not wait again.
    with pytest.raises(LinkError, match=CUT):
        wired.inbox.take(100 * PATIENCE_S)


@both
def test_credits_that_came_before_the_end_count(wire, transport: Transport):
    wired = wire(transport)
    fill(wired)
    for index in range(3):
        assert wired.take() == index
    wired.receiver.close()
    wired.outbox.settle(PATIENCE_S)
    assert wired.outbox.statistics.depth == 0


@both
def test_a_sender_without_credit_whose_receiver_is_gone_is_told(wire, transport: Transport):
    wired = wire(transport)
    fill(wired)
    wired.receiver.close()
    with pytest.raises(LinkError, match=CUT):
        wired.outbox.ready(PATIENCE_S)
    with pytest.raises(LinkError, match=CUT):
        wired.outbox.settle(PATIENCE_S)


def test_who_does_not_wait_is_not_told(wire):
    wired = wire("ipc")
    wired.put(0)
    wired.receiver.cut(NAME)
    assert wired.outbox.ready()
    wired.put(1)
    for _ in range(3):
        wired.inbox.take()


@pytest.mark.parametrize("capacity", range(1, 12))
def test_spending_the_credits_of_a_cut_link_does_not_block(wire, capacity: int):
    wired = wire("ipc", capacity)
    for index in range(3 * capacity + 1):
        wired.put(index)
        wired.take()
    wired.outbox.settle(PATIENCE_S)
    wired.receiver.cut(NAME)
    with pytest.raises(LinkError):
        wired.source.credits(PATIENCE_S)
    while wired.outbox.ready():
        wired.outbox.put(Message(Kind.BATCH, 0))
    assert wired.outbox.statistics.depth == capacity


def test_a_cut_link_leaves_the_others_of_its_hub_alone(wire):
    wired = wire("ipc")
    address, target = wired.receiver.listen("other", 2)
    source = wired.sender.connect("other", 2, address)
    target.accept(PATIENCE_S)
    wired.receiver.cut(NAME)
    with pytest.raises(LinkError):
        wired.inbox.take(PATIENCE_S)
    source.send([b"still", b"here"])
    assert [bytes(f) for f in target.receive(PATIENCE_S)] == [b"still", b"here"]


def test_only_an_open_link_that_ends_here_can_be_cut(wire):
    wired = wire("ipc")
    with pytest.raises(MailboxError, match=f"no link {NAME} is received here"):
        wired.sender.cut(NAME)
    wired.receiver.listen("labels 0->1", 2)
    with pytest.raises(MailboxError, match="labels 0->1 cannot be cut: nobody has connected"):
        wired.receiver.cut("labels 0->1")
    wired.receiver.cut(NAME)
    with pytest.raises(LinkError):
        wired.inbox.take(PATIENCE_S)
    with pytest.raises(MailboxError, match=f"the link {NAME} cannot be cut"):
        wired.receiver.cut(NAME)


def test_the_error_of_a_cut_link_survives_pickling(wire):
    wired = wire("ipc")
    wired.sender.close()
    with pytest.raises(LinkError) as caught:
        wired.inbox.take(PATIENCE_S)
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (type(copy), str(copy)) == (LinkError, str(caught.value))


# ------------------------------------------------------------------ what is no cut


@both
def test_closing_when_everything_is_taken_raises_nothing(wire, transport: Transport):
    wired = wire(transport)
    wired.put(0, 1)
    assert [wired.take(), wired.take()] == [0, 1]
    wired.outbox.settle(PATIENCE_S)
    wired.inbox.close()
    wired.outbox.settle(PATIENCE_S)
    assert wired.outbox.ready(PATIENCE_S)
    wired.outbox.close()
    for _ in range(2):
        wired.sender.close()
        wired.receiver.close()


def pour(pipe: Connection) -> None:
    """Send large tensors for ever."""
    torch.set_num_threads(1)
    hub = ZmqHub()
    outbox = Outbox(NAME, hub.connect(NAME, 4, pipe.recv()), 4)
    for index in itertools.count():
        outbox.ready(PATIENCE_S)
        outbox.put(Message(Kind.BATCH, index, (torch.full((100_000,), float(index)),)))


def take_poured(inbox: Inbox, at_50: Callable[[], None]) -> None:
    while (message := inbox.take(PATIENCE_S)) is not None:
        (tensor,) = message.tensors
        assert tensor is not None
        assert torch.equal(tensor, torch.full((100_000,), float(message.index)))
        if message.index == 50:
            at_50()


def test_a_sender_that_is_killed_at_its_work_leaves_whole_messages_and_nothing_else():
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=pour, args=(there,), daemon=True)
    process.start()
    there.close()
    hub = ZmqHub()
    try:
        address, end = hub.listen(NAME, 4)
        here.send(address)
        end.accept(2 * PATIENCE_S)
        inbox = Inbox(NAME, end, 4)
        with pytest.raises(LinkError, match=CUT):
            take_poured(inbox, process.kill)
        assert inbox.statistics.messages > 50
    finally:
        hub.close()
        process.kill()
        process.join()
        process.close()
        here.close()
    del end, inbox
    gc.collect()
    assert "memfd:raylab" not in Path("/proc/self/maps").read_text()


def test_strangers_who_come_and_go_do_not_cut_a_link(wire):
    wired = wire("tcp")
    host, port = wired.address.url.removeprefix("tcp://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port))) as stranger:
            assert stranger.recv(10)[:1] == b"\xff"
            stranger.sendall(b"no ZeroMQ at all" * 10)
            with contextlib.suppress(ConnectionError):
                while stranger.recv(1000):
                    pass
    assert wired.inbox.take(SHORT_S) is None
    wired.put(5)
    assert wired.take() == 5


def test_a_sender_that_is_not_let_in_is_told_so():
    receiver, stranger = ZmqHub(), ZmqHub()
    try:
        address, _ = receiver.listen(NAME, 2, "tcp", {receiver.public_key})
        end = stranger.connect(NAME, 2, address)
        with pytest.raises(LinkError, match=f"{CUT}: its other end"):
            end.credits(PATIENCE_S)
    finally:
        stranger.close()
        receiver.close()


@both
def test_a_sender_that_finds_nobody_is_told_so(transport: Transport):
    receiver, sender = ZmqHub(), ZmqHub()
    try:
        address, _ = receiver.listen(NAME, 2, transport, {sender.public_key})
        receiver.close()
        end = sender.connect(NAME, 2, address)
        with pytest.raises(LinkError, match=f"{CUT}: nobody listens"):
            end.credits(PATIENCE_S)
    finally:
        sender.close()


USES: dict[str, Callable[[ZmqSendEnd, ZmqReceiveEnd], object]] = {
    "send": lambda source, _: source.send(encode(0, Message(Kind.FINISH, 0))),
    "credits": lambda source, _: source.credits(0.0),
    "credits, waiting": lambda source, _: source.credits(SHORT_S),
    "receive": lambda _, target: target.receive(0.0),
    "receive, waiting": lambda _, target: target.receive(SHORT_S),
    "grant": lambda _, target: target.grant(1),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_an_end_that_was_closed_here_says_so(wire, use):
    wired = wire("ipc")
    for end in (wired.source, wired.target):
        end.close()
        end.close()
    with pytest.raises(MailboxError, match=f"the link {NAME} is closed at this end"):
        use(wired.source, wired.target)


# ------------------------------------------------------------------ a node that says no goodbye


class Relay:
    """Passes bytes on between two TCP connections, until it falls silent without closing them."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = target
        self._over = threading.Event()
        self.silent = threading.Event()
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._pass_on)
        self._thread.start()

    def _pass_on(self) -> None:
        near, _ = self._listener.accept()
        with near, socket.create_connection(self._target) as far:
            others = {near: far, far: near}
            while not self.silent.is_set():
                for ready in select.select(list(others), [], [], 0.02)[0]:
                    others[ready].sendall(ready.recv(1 << 16))
            self._over.wait(3 * PATIENCE_S)

    def close(self) -> None:
        self.silent.set()
        self._over.set()
        self._thread.join()
        self._listener.close()


def test_a_node_that_falls_silent_cuts_its_links(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("actors.wires.zmq_watch.HEARTBEAT_S", 0.1)
    monkeypatch.setattr("actors.wires.zmq_watch.HEARTBEAT_TIMEOUT_S", 1.0)
    receiver, sender = ZmqHub(), ZmqHub()
    address, target = receiver.listen(NAME, 2, "tcp", {sender.public_key})
    relay = Relay(("127.0.0.1", int(address.url.rsplit(":", 1)[1])))
    try:
        there = Address(f"tcp://127.0.0.1:{relay.port}", address.server_key)
        source = sender.connect(NAME, 2, there)
        target.accept(PATIENCE_S)
        relay.silent.set()
        with pytest.raises(LinkError, match=CUT):
            target.receive(PATIENCE_S)
        with pytest.raises(LinkError, match=CUT):
            source.credits(PATIENCE_S)
    finally:
        relay.close()
        sender.close()
        receiver.close()


# ------------------------------------------------------------------ damage on the way


class Damaging:
    """The sender's end of a wire that flips one bit in the stated frame of message 1."""

    def __init__(self, end: Any, frame: int) -> None:
        self._end = end
        self._frame = frame
        self._count = 0
        self.credits = end.credits
        self.close = end.close

    def send(self, frames: Sequence[Buffer]) -> None:
        damaged = [bytearray(frame) for frame in frames]
        if self._count == 1:
            damaged[self._frame][-1] ^= 4
        self._count += 1
        self._end.send(damaged)


def assert_damage_is_noticed(outbox: Outbox, inbox: Inbox) -> None:
    outbox.put(Message(Kind.BATCH, 0, (torch.arange(10_000.0), torch.ones(20_000))))
    message = inbox.take(PATIENCE_S)
    assert message is not None
    assert torch.equal(message.tensors[0], torch.arange(10_000.0))
    outbox.put(Message(Kind.BATCH, 1, (torch.arange(10_000.0), torch.ones(20_000))))
    with pytest.raises(CorruptMessageError, match=f"{NAME}: the message with sequence number 1,"):
        inbox.take(PATIENCE_S)
    assert inbox.statistics.messages == 1


@pytest.mark.parametrize("frame", [0, 1, 2])
@both
def test_damage_over_zmq_is_noticed(wire, transport: Transport, frame: int):
    wired = wire(transport)
    assert_damage_is_noticed(Outbox(NAME, Damaging(wired.source, frame), 3), wired.inbox)


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_damage_over_ray_is_noticed(frame: int):
    """The ends are the real ones; instead of Ray, a call copies the arrays and maps them."""

    def deliver(name: str, *arrays: np.ndarray) -> None:
        assert name == NAME
        target.delivered([np.frombuffer(array.tobytes(), np.uint8).data for array in arrays])

    def credit(name: str, count: int) -> None:
        assert name == NAME
        source.credited(count)

    source = RaySendEnd(NAME, SimpleNamespace(deliver=SimpleNamespace(remote=deliver)))
    target = RayReceiveEnd(NAME, SimpleNamespace(credit=SimpleNamespace(remote=credit)))
    assert_damage_is_noticed(Outbox(NAME, Damaging(source, frame), 3), Inbox(NAME, target, 3))
