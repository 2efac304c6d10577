"""ZeroMQ wires: between hubs of one thread, of two threads and of two processes."""

from __future__ import annotations

import gc
import multiprocessing
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from typing_extensions import Buffer

from actors.errors import CorruptMessageError, MailboxError
from actors.wires.frames import encode
from actors.wires.mailbox import Inbox, Outbox
from actors.wires.messages import Kind, Message
from actors.wires.node_memory import NodeMemory
from actors.wires.zmq_wire import Address, ZmqHub, ZmqReceiveEnd

pytestmark = pytest.mark.actor

Transport = Literal["ipc", "tcp"]
both = pytest.mark.parametrize("transport", ["ipc", "tcp"])
PATIENCE_S = 20.0
"""How long what must come may take on a busy machine."""
SHORT_S = 0.2
"""How long to look out for what must not come."""


@pytest.fixture
def hub() -> Iterator[Callable[[], ZmqHub]]:
    """Make hubs that are closed in the end, the last one first."""
    made: list[ZmqHub] = []

    def make() -> ZmqHub:
        made.append(ZmqHub())
        return made[-1]

    yield make
    for one in reversed(made):
        one.close()


def pair(
    hub: Callable[[], ZmqHub], transport: Transport, capacity: int = 2, name: str = "features 0->1"
) -> tuple[Outbox, Inbox]:
    """The two boxes of an open link between two new hubs."""
    receiver, sender = hub(), hub()
    address, end = receiver.listen(name, capacity, transport, {sender.public_key})
    outbox = Outbox(name, sender.connect(name, capacity, address), capacity)
    end.accept(PATIENCE_S)
    return outbox, Inbox(name, end, capacity)


def put(outbox: Outbox, *tensors: Tensor | None, index: int = 0) -> None:
    assert outbox.ready(PATIENCE_S)
    outbox.put(Message(Kind.BATCH, index, tensors))


def taken(inbox: Inbox) -> Message:
    message = inbox.take(PATIENCE_S)
    assert message is not None
    return message


def socket_file(address: Address) -> Path:
    return Path(address.url.removeprefix("ipc://"))


def payload(index: int) -> tuple[Tensor | None, ...]:
    """Tensors of several kinds that tell their number."""
    return (
        torch.arange(40_000.0) + index,
        torch.tensor(index),
        None,
        index == torch.arange(6).reshape(2, 3).T,
        torch.full((3,), 0.5 * index, dtype=torch.bfloat16),
        torch.empty(0, 4),
    )


def assert_payload(message: Message, index: int) -> None:
    assert message.index == index
    expected = payload(index)
    assert len(message.tensors) == len(expected)
    for got, sent in zip(message.tensors, expected, strict=True):
        assert (got is None) == (sent is None)
        if sent is not None:
            assert got is not None
            assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
            assert torch.equal(got, sent)


# ------------------------------------------------------------------ round trips


@both
def test_tensors_of_all_sorts_arrive_in_order(hub: Callable[[], ZmqHub], transport: Transport):
    outbox, inbox = pair(hub, transport)
    for index in range(10):
        put(outbox, *payload(index), index=index)
        assert_payload(taken(inbox), index)
    assert inbox.take() is None


@both
def test_a_tensor_of_8_megabytes_arrives_as_it_was(hub: Callable[[], ZmqHub], transport: Transport):
    sent = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
    outbox, inbox = pair(hub, transport)
    put(outbox, sent)
    put(outbox, sent.flip(0))
    assert torch.equal(taken(inbox).tensors[0], sent)
    assert torch.equal(taken(inbox).tensors[0], sent.flip(0))


@both
def test_what_is_sent_may_be_forgotten_by_the_sender(
    hub: Callable[[], ZmqHub], transport: Transport
):
    outbox, inbox = pair(hub, transport, capacity=4)
    for index in range(4):
        put(outbox, torch.full((500_000,), float(index)), index=index)
        gc.collect()
    for index in range(4):
        (got,) = taken(inbox).tensors
        assert torch.equal(got, torch.full((500_000,), float(index)))


@both
def test_what_is_taken_outlives_the_sockets(hub: Callable[[], ZmqHub], transport: Transport):
    receiver, sender = ZmqHub(), ZmqHub()
    try:
        address, end = receiver.listen("link", 2, transport, {sender.public_key})
        outbox = Outbox("link", sender.connect("link", 2, address), 2)
        end.accept(PATIENCE_S)
        inbox = Inbox("link", end, 2)
        put(outbox, *payload(3), index=3)
        message = taken(inbox)
    finally:
        sender.close()
        receiver.close()
    gc.collect()
    assert_payload(message, 3)


@both
def test_two_threads_exchange_more_messages_than_the_capacity(
    hub: Callable[[], ZmqHub], transport: Transport
):
    receiver, sender = hub(), ZmqHub()
    address, end = receiver.listen("link", 2, transport, {sender.public_key})
    all_taken = threading.Event()

    def send() -> None:
        try:
            outbox = Outbox("link", sender.connect("link", 2, address), 2)
            for index in range(50):
                put(outbox, *payload(index), index=index)
            assert all_taken.wait(PATIENCE_S)
        finally:
            sender.close()

    # What the thread raises, it raises as a warning, and warnings are errors.
    thread = threading.Thread(target=send)
    thread.start()
    try:
        end.accept(PATIENCE_S)
        inbox = Inbox("link", end, 2)
        for index in range(50):
            assert_payload(taken(inbox), index)
    finally:
        all_taken.set()
        thread.join(2 * PATIENCE_S)
    assert not thread.is_alive()
    assert inbox.statistics.messages == 50
    assert inbox.statistics.peak_depth <= 2


def echo_in_a_process(parent: Connection) -> None:
    """Send every message back, over wires both ways, until the marker of the end."""
    torch.set_num_threads(1)
    hub = ZmqHub()
    try:
        parent.send(hub.public_key)
        their_key, their_address, transport = parent.recv()
        address, end = hub.listen("back", 2, transport, {their_key})
        parent.send(address)
        outbox = Outbox("forth", hub.connect("forth", 2, their_address), 2)
        end.accept(PATIENCE_S)
        inbox = Inbox("back", end, 2)
        while (message := taken(inbox)).kind is not Kind.FINISH:
            put(outbox, *message.tensors, index=message.index)
        parent.recv()
    finally:
        hub.close()
        parent.close()


@both
def test_two_processes_exchange_tensors_both_ways(hub: Callable[[], ZmqHub], transport: Transport):
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=echo_in_a_process, args=(there,), daemon=True
    )
    process.start()
    there.close()
    try:
        ours = hub()
        address, end = ours.listen("forth", 2, transport, {answer(here)})
        here.send((ours.public_key, address, transport))
        outbox = Outbox("back", ours.connect("back", 2, answer(here)), 2)
        end.accept(PATIENCE_S)
        inbox = Inbox("forth", end, 2)
        big = torch.arange(2_000_000.0)
        for index in range(20):
            put(outbox, *payload(index), index=index)
            assert_payload(taken(inbox), index)
        put(outbox, big)
        assert torch.equal(taken(inbox).tensors[0], big)
        assert outbox.ready(PATIENCE_S)
        outbox.put(Message(Kind.FINISH, 0))
        here.send("done")
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
        here.close()


def answer(pipe: Connection) -> Any:
    assert pipe.poll(2 * PATIENCE_S), "the other process does not answer"
    return pipe.recv()


# ------------------------------------------------------------------ credits


@both
def test_a_receiver_that_does_not_take_bounds_what_is_under_way(
    hub: Callable[[], ZmqHub], transport: Transport
):
    outbox, inbox = pair(hub, transport, capacity=3)
    for index in range(3):
        put(outbox, torch.ones(4), index=index)
    assert not outbox.ready(SHORT_S)
    with pytest.raises(MailboxError, match="features 0->1 is full: 3 messages"):
        outbox.put(Message(Kind.BATCH, 3))
    assert outbox.statistics.waited_s >= SHORT_S / 2
    assert [taken(inbox).index for _ in range(2)] == [0, 1]
    for index in (3, 4):
        put(outbox, torch.ones(4), index=index)
    assert not outbox.ready(SHORT_S)
    assert [taken(inbox).index for _ in range(3)] == [2, 3, 4]
    assert outbox.statistics.peak_depth == 3
    assert inbox.statistics.peak_depth <= 3


@both
def test_all_credits_come_back(hub: Callable[[], ZmqHub], transport: Transport):
    outbox, inbox = pair(hub, transport, capacity=3)
    for start in (0, 3, 6, 9):
        for index in range(start, start + 3):
            put(outbox, torch.ones(1), index=index)
        for index in range(start, start + 3):
            assert taken(inbox).index == index


def test_receiving_gives_up_in_time(hub: Callable[[], ZmqHub]):
    _, inbox = pair(hub, "ipc")
    assert inbox.take(SHORT_S) is None
    assert SHORT_S / 2 < inbox.statistics.waited_s < PATIENCE_S


# ------------------------------------------------------------------ who is let in


def test_the_socket_file_is_private_and_gone_after_the_greeting(hub: Callable[[], ZmqHub]):
    receiver, sender = hub(), hub()
    address, end = receiver.listen("link", 2)
    file = socket_file(address)
    assert file.is_socket()
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    outbox = Outbox("link", sender.connect("link", 2, address), 2)
    end.accept(PATIENCE_S)
    assert not file.exists()
    assert list(file.parent.iterdir()) == []
    # The link does not need its file any more.
    put(outbox, torch.ones(2))
    assert taken(Inbox("link", end, 2)).index == 0
    receiver.close()
    assert not file.parent.exists()


def test_settling_removes_the_directory_and_leaves_the_links_open(hub: Callable[[], ZmqHub]):
    receiver, sender = hub(), hub()
    address, end = receiver.listen("link", 2)
    outbox = Outbox("link", sender.connect("link", 2, address), 2)
    end.accept(PATIENCE_S)
    receiver.settle()
    assert not socket_file(address).parent.exists()
    inbox = Inbox("link", end, 2)
    for index in range(5):
        put(outbox, torch.ones(2), index=index)
        assert taken(inbox).index == index


def test_closing_removes_the_file_of_a_link_that_was_never_used(hub: Callable[[], ZmqHub]):
    receiver = hub()
    file = socket_file(receiver.listen("link", 2)[0])
    receiver.close()
    assert not file.parent.exists()


def test_links_of_one_hub_do_not_mix(hub: Callable[[], ZmqHub]):
    receiver, sender = hub(), hub()
    listening = [receiver.listen(name, 2) for name in ("one", "two")]
    assert len({address.url for address, _ in listening}) == 2
    boxes = {
        name: Outbox(name, sender.connect(name, 2, address), 2)
        for name, (address, _) in zip(("one", "two"), listening, strict=True)
    }
    for _, end in listening:
        end.accept(PATIENCE_S)
    put(boxes["two"], torch.ones(1), index=2)
    put(boxes["one"], torch.ones(1), index=1)
    assert [taken(Inbox("", end, 2)).index for _, end in listening] == [1, 2]


@both
def test_a_sender_of_another_name_is_refused(hub: Callable[[], ZmqHub], transport: Transport):
    receiver, sender = hub(), hub()
    address, end = receiver.listen("features 0->1", 2, transport, {sender.public_key})
    sender.connect("features 0->10", 2, address)
    with pytest.raises(
        MailboxError, match=r"features 0->1 was greeted with b'raylab 1 features 0->10'"
    ):
        end.accept(PATIENCE_S)


def test_a_message_is_no_greeting(hub: Callable[[], ZmqHub]):
    receiver, sender = hub(), hub()
    address, end = receiver.listen("link", 2)
    sender.connect("", 2, address).send(encode(0, Message(Kind.FINISH, 0)))
    with pytest.raises(MailboxError, match="link was greeted with"):
        end.accept(PATIENCE_S)


@both
def test_a_sender_that_does_not_come_is_missed_by_name(
    hub: Callable[[], ZmqHub], transport: Transport
):
    _, end = hub().listen("labels 0->3", 2, transport)
    with pytest.raises(MailboxError, match=r"nobody connected to labels 0->3 within 0\.2 s"):
        end.accept(SHORT_S)


def assert_nothing_comes_through(sender: ZmqHub, address: Address, end: ZmqReceiveEnd) -> None:
    outgoing = sender.connect("link", 2, address)
    outgoing.send(encode(0, Message(Kind.BATCH, 0, (torch.ones(2),))))
    with pytest.raises(MailboxError, match="nobody connected to link"):
        end.accept(SHORT_S)
    assert end.receive(0) is None


def test_a_client_with_an_unknown_key_gets_nothing_through(hub: Callable[[], ZmqHub]):
    receiver, known, stranger = hub(), hub(), hub()
    address, end = receiver.listen("link", 2, "tcp", {known.public_key})
    assert_nothing_comes_through(stranger, address, end)
    # The listener is none the worse for it.
    outbox = Outbox("link", known.connect("link", 2, address), 2)
    end.accept(PATIENCE_S)
    put(outbox, torch.ones(2), index=5)
    assert taken(Inbox("link", end, 2)).index == 5


def test_a_client_without_a_key_gets_nothing_through(hub: Callable[[], ZmqHub]):
    receiver, sender = hub(), hub()
    address, end = receiver.listen("link", 2, "tcp", {sender.public_key})
    assert address.server_key
    assert_nothing_comes_through(sender, Address(address.url), end)


def test_a_client_that_expects_another_server_gets_nothing_through(hub: Callable[[], ZmqHub]):
    receiver, sender, other = hub(), hub(), hub()
    address, end = receiver.listen("link", 2, "tcp", {sender.public_key})
    assert_nothing_comes_through(sender, Address(address.url, other.public_key), end)


def test_without_known_peers_nobody_is_let_in(hub: Callable[[], ZmqHub]):
    receiver, sender = hub(), hub()
    address, end = receiver.listen("link", 2, "tcp")
    assert_nothing_comes_through(sender, address, end)


def test_every_link_of_a_hub_lets_its_own_peer_in(hub: Callable[[], ZmqHub]):
    receiver, below, above = hub(), hub(), hub()
    one, features = receiver.listen("features", 2, "tcp", {below.public_key})
    two, gradients = receiver.listen("gradients", 2, "tcp", {above.public_key})
    from_below = Outbox("features", below.connect("features", 2, one), 2)
    from_above = Outbox("gradients", above.connect("gradients", 2, two), 2)
    features.accept(PATIENCE_S)
    gradients.accept(PATIENCE_S)
    put(from_below, torch.ones(1), index=1)
    put(from_above, torch.ones(1), index=2)
    assert taken(Inbox("features", features, 2)).index == 1
    assert taken(Inbox("gradients", gradients, 2)).index == 2


def test_tcp_listens_on_the_loopback_unless_told_otherwise(hub: Callable[[], ZmqHub]):
    address, _ = hub().listen("link", 2, "tcp")
    assert address.url.startswith("tcp://127.0.0.1:")


def test_every_process_has_keys_of_its_own(hub: Callable[[], ZmqHub]):
    assert hub().public_key != hub().public_key


# ------------------------------------------------------------------ the end


@both
def test_closing_leaves_no_socket_context_or_directory_open(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
):
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    receiver, sender = ZmqHub(), ZmqHub()
    address, _ = receiver.listen("link", 2, transport, {sender.public_key})
    sender.connect("link", 2, address)
    threads = set(threading.enumerate())
    sender.close()
    receiver.close()
    del receiver, sender
    gc.collect()
    assert complaints == []
    assert not [t for t in threads - {threading.current_thread()} if is_authenticator(t)]


def is_authenticator(thread: threading.Thread) -> bool:
    return thread.is_alive() and type(thread).__name__ == "AuthenticationThread"


@pytest.mark.timeout(30)
@both
def test_giving_credits_to_a_sender_that_has_left_does_not_block(
    hub: Callable[[], ZmqHub], transport: Transport
):
    receiver, sender = hub(), hub()
    address, end = receiver.listen("link", 2, transport, {sender.public_key})
    sender.connect("link", 2, address)
    end.accept(PATIENCE_S)
    sender.close()
    for _ in range(100):
        end.grant(1)


@pytest.mark.timeout(30)
@both
def test_what_was_sent_before_closing_still_arrives(
    hub: Callable[[], ZmqHub], transport: Transport
):
    receiver, sender = hub(), hub()
    address, end = receiver.listen("link", 2, transport, {sender.public_key})
    outbox = Outbox("link", sender.connect("link", 2, address), 2)
    end.accept(PATIENCE_S)
    put(outbox, torch.arange(300_000.0), index=7)
    sender.close()
    message = taken(Inbox("link", end, 2))
    assert message.index == 7
    assert torch.equal(message.tensors[0], torch.arange(300_000.0))


@pytest.mark.timeout(60)
def test_links_opened_and_closed_one_after_another_leave_no_trace(hub: Callable[[], ZmqHub]):
    """What ZeroMQ's thread takes down of a link is of no concern to the next one."""
    for _ in range(15):
        one = hub()
        # A context holds 1023 sockets, and a thread that gets no processor takes none of them down.
        for number in range(100):
            address, end = one.listen(f"link {number}", 4)
            sender = one.connect(f"link {number}", 4, address)
            end.accept(PATIENCE_S)
            sender.close()
            end.close()
        one.close()


@pytest.mark.parametrize(("transport", "by_memory"), [("ipc", 6), ("tcp", 0)])
def test_on_a_node_large_tensors_pass_by_its_memory(
    hub: Callable[[], ZmqHub],
    transport: Transport,
    by_memory: int,
    monkeypatch: pytest.MonkeyPatch,
):
    tickets = counted_tickets(monkeypatch)
    outbox, inbox = pair(hub, transport)
    for index in range(6):
        put(outbox, *payload(index), index=index)
        assert_payload(taken(inbox), index)
    assert tickets == [True] * by_memory


def counted_tickets(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether there was room, for every message that might have passed by the node's memory."""
    tickets: list[bool] = []
    put_there = NodeMemory.put

    def counted(self: NodeMemory, frames: Sequence[Buffer]) -> bytes | None:
        ticket = put_there(self, frames)
        tickets.append(ticket is not None)
        return ticket

    monkeypatch.setattr(NodeMemory, "put", counted)
    return tickets


def elsewhere(*_: object) -> None:
    raise OSError("another container, another user, another system")


@pytest.mark.parametrize("end", ["NodeMemory", "TheirMemory"])
def test_without_common_memory_large_tensors_pass_by_the_socket(
    hub: Callable[[], ZmqHub], end: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(f"actors.wires.zmq_ends.{end}", elsewhere)
    tickets = counted_tickets(monkeypatch)
    outbox, inbox = pair(hub, "ipc")
    for index in range(3):
        put(outbox, *payload(index), index=index)
        assert_payload(taken(inbox), index)
    assert not any(tickets)


def test_large_tensors_of_a_sender_that_is_gone_can_still_be_taken(hub: Callable[[], ZmqHub]):
    receiver, sender = hub(), ZmqHub()
    address, end = receiver.listen("link", 4)
    outbox = Outbox("link", sender.connect("link", 4, address), 4)
    end.accept(PATIENCE_S)
    for index in range(4):
        put(outbox, *payload(index), index=index)
    sender.close()
    inbox = Inbox("link", end, 4)
    kept = [taken(inbox) for _ in range(4)]
    inbox.close()
    for index, message in enumerate(kept):
        assert_payload(message, index)


def test_what_a_sender_writes_later_is_not_in_what_was_sent_by_the_nodes_memory(
    hub: Callable[[], ZmqHub],
):
    outbox, inbox = pair(hub, "ipc")
    sent = torch.arange(40_000.0)
    put(outbox, sent)
    sent.zero_()
    assert torch.equal(taken(inbox).tensors[0], torch.arange(40_000.0))


def test_the_checksum_covers_what_passes_by_the_nodes_memory(
    hub: Callable[[], ZmqHub], monkeypatch: pytest.MonkeyPatch
):
    outbox, inbox = pair(hub, "ipc")
    put(outbox, torch.arange(40_000.0))
    inbox._end._memory._memory[4096 + 77] ^= 1
    with pytest.raises(CorruptMessageError, match="did not arrive as it was put"):
        inbox.take(PATIENCE_S)
