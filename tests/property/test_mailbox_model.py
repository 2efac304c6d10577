"""30,000 random operations on mailboxes, each against a queue and a count of credits."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import pytest
import torch
from typing_extensions import Buffer

from actors.errors import CorruptMessageError, LinkError, MailboxError
from actors.wires.frames import encode
from actors.wires.local_wire import LocalReceiveEnd, LocalSendEnd, local_wire
from actors.wires.mailbox import Inbox, Outbox
from actors.wires.messages import Kind, Message

pytestmark = pytest.mark.property

SEEDS = 100
OPERATIONS = 300


class Noting:
    """The receiver's end; tells the test what comes through, and holds credits back."""

    def __init__(self, end: LocalReceiveEnd) -> None:
        self._end = end
        self.came: list[Sequence[Buffer]] = []
        self.owed = 0

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        frames = self._end.receive(timeout_s)
        if frames is not None:
            self.came.append(frames)
        return frames

    def grant(self, count: int) -> None:
        self.owed += count

    def release(self, count: int) -> None:
        self.owed -= count
        self._end.grant(count)

    def close(self) -> None:
        self._end.close()


class Frames(list):  # type: ignore[type-arg]
    """The frames of a message; the test knows which, the mailbox does not."""

    def __init__(
        self, frames: Sequence[Buffer], number: int, damage: random.Random | None = None
    ) -> None:
        super().__init__(bytearray(frame) for frame in frames)
        self.number, self.damaged = number, damage is not None
        if damage is not None:
            frame = damage.choice(self)
            frame[damage.randrange(len(frame))] ^= damage.randrange(1, 256)


class Sending:
    """The sender's end, whose messages the test recognises."""

    def __init__(self, end: LocalSendEnd) -> None:
        self._end = end
        self._count = 0
        self.credits = end.credits
        self.close = end.close

    def send(self, frames: Sequence[Buffer]) -> None:
        self._end.send(Frames(frames, self._count))
        self._count += 1


class History:
    """One random history. The model: `untaken` is the queue, `free` and `returned` the credits.

    Attributes:
        untaken: put and not taken, in order.
        arrived: numbers that the inbox has, and has not handed out.
        free: credits that the sender knows of.
        returned: credits at the sender that it has not looked at.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.capacity = self.random.randint(1, 6)
        self.sender, receiver = local_wire(self.random)
        self.wire = Noting(receiver)
        self.outbox = Outbox("outbox", Sending(self.sender), self.capacity)
        self.inbox = Inbox("inbox", self.wire, self.capacity)
        self.messages: list[Message] = []
        self.untaken: deque[Message] = deque()
        self.arrived: set[int] = set()
        self.next = 0
        self.free = self.capacity
        self.returned = 0
        self.cut = False
        self.put_bytes = self.put_peak = self.taken_bytes = self.taken_peak = 0
        self.seen: dict[str, int] = dict.fromkeys(
            ("taken", "full", "late", "early", "twice", "damaged", "cut"), 0
        )

    def step(self) -> None:
        operations = [self.put] * 6 + [self.take] * 8 + [self.ready] * 3 + [self.release] * 4
        operations += [self.settle, self.repeat, self.damage]
        if self.cut:
            operations += [self.wait_for_message, self.wait_for_credit]
        self.random.choice(operations)()
        self.check()

    # ------------------------------------------------------------------ operations

    def put(self) -> None:
        number = len(self.messages)
        tensors = (torch.full((self.random.randint(0, 5),), float(number)),)
        message = Message(Kind.BATCH, number, self.random.choice([(), tensors, (None, *tensors)]))
        if not self.free:
            self.seen["full"] += 1
            with pytest.raises(MailboxError, match="outbox is full"):
                self.outbox.put(message)
            return
        self.outbox.put(message)
        self.messages.append(message)
        self.untaken.append(message)
        self.put_bytes += size(message)
        self.free -= 1
        self.put_peak = max(self.put_peak, self.capacity - self.free)

    def ready(self) -> None:
        ready = self.outbox.ready()
        self.look()
        assert ready == (self.free > 0)

    def settle(self) -> None:
        self.outbox.settle(0.0)
        self.look()

    def look(self) -> None:
        self.free, self.returned = self.free + self.returned, 0

    def release(self) -> None:
        """Some credits that are under way come back."""
        count = self.random.randint(0, self.wire.owed)
        self.wire.release(count)
        self.returned += count

    def repeat(self) -> None:
        """The wire brings something a second time."""
        if self.messages:
            number = self.random.randrange(max(0, len(self.messages) - 8), len(self.messages))
            self.sender.send(Frames(encode(number, self.messages[number]), number))

    def damage(self) -> None:
        """The wire brings something that was never sent."""
        if self.messages:
            number = self.random.randrange(len(self.messages))
            frames = encode(number, self.messages[number])
            self.sender.send(Frames(frames, number, self.random))

    def take(self, timeout_s: float = 0.0) -> None:
        self.wire.came.clear()
        message: Message | None = None
        raised: MailboxError | None = None
        try:
            message = self.inbox.take(timeout_s)
        except MailboxError as error:
            raised = error
        for frames in self.wire.came:
            expected = self.arrive(frames)
            if expected is not None:
                assert frames is self.wire.came[-1]
                assert raised is not None
                assert type(raised) is expected[0]
                assert expected[1] in str(raised)
                return
        if raised is not None:
            assert isinstance(raised, LinkError)
            assert (timeout_s > 0, self.cut, self.next in self.arrived) == (True, True, False)
            self.seen["cut"] += 1
            return
        if self.next not in self.arrived:
            assert message is None
            self.seen["late"] += bool(self.untaken)
            self.seen["early"] += bool(self.arrived)
            return
        assert message is not None
        self.handed_out(message)

    def arrive(self, frames: Sequence[Buffer]) -> tuple[type[MailboxError], str] | None:
        assert isinstance(frames, Frames)
        if frames.damaged:
            self.seen["damaged"] += 1
            return CorruptMessageError, "inbox: the message with sequence number"
        if frames.number < self.next or frames.number in self.arrived:
            self.seen["twice"] += 1
            return MailboxError, f"inbox got message {frames.number} twice"
        self.arrived.add(frames.number)
        self.taken_peak = max(self.taken_peak, len(self.arrived))
        return None

    def handed_out(self, message: Message) -> None:
        expected = self.untaken.popleft()
        assert (message.kind, message.index) == (expected.kind, expected.index)
        assert message.index == self.next
        assert len(message.tensors) == len(expected.tensors)
        for got, sent in zip(message.tensors, expected.tensors, strict=True):
            assert (got is None and sent is None) or torch.equal(got, sent)
        self.arrived.remove(self.next)
        self.next += 1
        self.taken_bytes += size(expected)
        self.seen["taken"] += 1

    def wait_for_message(self) -> None:
        self.take(1.0)

    def wait_for_credit(self) -> None:
        self.look()
        if self.outbox.ready():
            assert self.outbox.ready(1.0)
        else:
            with pytest.raises(LinkError, match="was cut"):
                self.outbox.ready(1.0)

    def cut_wire(self) -> None:
        self.sender.cut()
        self.cut = True

    # ------------------------------------------------------------------ what always holds

    def check(self) -> None:
        assert len(self.untaken) <= self.capacity
        assert len(self.arrived) <= self.capacity
        assert self.free + self.returned + self.wire.owed + len(self.untaken) == self.capacity
        put, taken = self.outbox.statistics, self.inbox.statistics
        assert (put.messages, put.bytes) == (len(self.messages), self.put_bytes)
        assert (put.depth, put.peak_depth) == (self.capacity - self.free, self.put_peak)
        assert (taken.messages, taken.bytes) == (self.next, self.taken_bytes)
        assert (taken.depth, taken.peak_depth) == (len(self.arrived), self.taken_peak)

    def end(self) -> None:
        """All that was put comes out, once, in order; all credits come back."""
        for _ in range(1000):
            if not self.untaken:
                break
            self.take()
        assert [self.next, len(self.arrived)] == [len(self.messages), 0]
        self.wire.release(self.wire.owed)
        self.outbox.settle(0.0)
        assert self.outbox.statistics.depth == 0

    def end_cut(self) -> None:
        """What had come is handed out as far as it is in order, then waiting is an error."""
        before = self.seen["cut"]
        for _ in range(self.capacity + 1):
            self.take(1.0)
            self.check()
        assert self.seen["cut"] > before
        assert self.next not in self.arrived


def size(message: Message) -> int:
    return sum(4 * t.numel() for t in message.tensors if t is not None)


def history(seed: int) -> History:
    one = History(seed)
    for _ in range(OPERATIONS):
        one.step()
    if seed % 2:
        one.end()
    else:
        one.cut_wire()
        for _ in range(20):
            one.step()
        one.end_cut()
    return one


def test_thirty_thousand_operations_agree_with_the_model():
    seen: dict[str, int] = {}
    for seed in range(SEEDS):
        try:
            one = history(seed)
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"history({seed}) differs from the model: {error!r}") from error
        for name, count in one.seen.items():
            seen[name] = seen.get(name, 0) + count
    # The histories have seen all that may happen, often.
    assert min(seen.values()) >= 20, seen
    assert seen["taken"] >= 1000
