"""Mailboxes over wires that break the rules, and by a clock that only waiting moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from actors.errors import MailboxError
from actors.wires.frames import encode
from actors.wires.mailbox import Inbox, Outbox
from actors.wires.messages import Kind, Message

pytestmark = pytest.mark.property


class Wire:
    """Both ends of a wire; the test decides what arrives and when."""

    def __init__(self) -> None:
        self.sent: list[Sequence[Buffer]] = []
        """Under way to the receiver, in the order of sending."""
        self.delivered: deque[Sequence[Buffer]] = deque()
        """At the receiver, in the order of arrival."""
        self.granted = 0
        """Credits under way to the sender."""
        self.returned = 0
        """Credits at the sender."""

    def send(self, frames: Sequence[Buffer]) -> None:
        self.sent.append([bytes(frame) for frame in frames])

    def credits(self, timeout_s: float) -> int:
        count, self.returned = self.returned, 0
        return count

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        return self.delivered.popleft() if self.delivered else None

    def grant(self, count: int) -> None:
        self.granted += count

    def close(self) -> None:
        pass


def numbered(number: int, elements: int = 1) -> Message:
    return Message(Kind.BATCH, number, (torch.full((elements,), float(number)),))


# ------------------------------------------------------------------ what the wire must not do

CASES = settings(max_examples=50, deadline=None, derandomize=True)


@CASES
@given(count=st.integers(1, 6), data=st.data())
def test_a_message_that_comes_twice_is_an_error_before_and_after_it_is_taken(
    count: int, data: st.DataObject
):
    wire = Wire()
    frames = [encode(n, numbered(n)) for n in range(count)]
    again = data.draw(st.integers(0, count - 1))
    taken = data.draw(st.integers(0, count))
    inbox = Inbox("inbox", wire, count + 1)
    wire.delivered.extend(data.draw(st.permutations(frames)))
    assert [inbox.take().index for _ in range(taken)] == list(range(taken))
    wire.delivered.append(frames[again])
    with pytest.raises(MailboxError, match=f"inbox got message {again} twice"):
        inbox.take()


@CASES
@given(capacity=st.integers(1, 6), first=st.integers(0, 3))
def test_more_messages_than_credits_are_an_error(capacity: int, first: int):
    wire = Wire()
    inbox = Inbox("inbox", wire, capacity)
    wire.delivered.extend(encode(n, numbered(n)) for n in range(1, capacity + 1))
    assert inbox.take() is None
    wire.delivered.append(encode(capacity + 1 + first, numbered(0)))
    with pytest.raises(
        MailboxError, match=f"inbox holds {capacity + 1} messages, but {capacity} fit"
    ):
        inbox.take()


@CASES
@given(capacity=st.integers(1, 6), data=st.data())
def test_more_credits_than_were_spent_are_an_error(capacity: int, data: st.DataObject):
    wire = Wire()
    outbox = Outbox("outbox", wire, capacity)
    spent = data.draw(st.integers(0, capacity))
    for number in range(spent):
        outbox.put(numbered(number))
    wire.returned = spent
    assert outbox.ready()
    wire.returned = 1
    with pytest.raises(MailboxError, match="outbox got more credits back than it had spent"):
        outbox.ready()


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_box_without_room_for_a_message_is_an_error(capacity: int):
    with pytest.raises(MailboxError, match=f"capacity >= 1 must hold, but got {capacity} for box"):
        Outbox("box", Wire(), capacity)


# ------------------------------------------------------------------ waiting, by a virtual clock


class TimedWire(Wire):
    """Frames and credits come at stated times of a clock that only waiting moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now_s = 0.0
        self.frames_at: list[tuple[float, Sequence[Buffer]]] = []
        self.credits_at: list[float] = []
        self.waits: list[float] = []
        monkeypatch.setattr(
            "actors.wires.mailbox.time", SimpleNamespace(perf_counter=lambda: self.now_s)
        )

    def _wait(self, first_s: float | None, timeout_s: float) -> bool:
        self.waits += [timeout_s] * (timeout_s > 0)
        if first_s is None or first_s > self.now_s + timeout_s:
            self.now_s += timeout_s
            return False
        self.now_s = max(self.now_s, first_s)
        return True

    def receive(self, timeout_s: float) -> Sequence[Buffer] | None:
        first_s = self.frames_at[0][0] if self.frames_at else None
        return self.frames_at.pop(0)[1] if self._wait(first_s, timeout_s) else None

    def credits(self, timeout_s: float) -> int:
        first_s = self.credits_at[0] if self.credits_at else None
        if not self._wait(first_s, timeout_s):
            return 0
        self.credits_at.pop(0)
        return 1


def test_a_take_waits_for_the_message_that_is_next_and_not_for_another(
    monkeypatch: pytest.MonkeyPatch,
):
    wire = TimedWire(monkeypatch)
    inbox = Inbox("inbox", wire, 3)
    wire.frames_at = [(2.0, encode(1, numbered(1))), (3.0, encode(0, numbered(0)))]
    assert inbox.take(10.0).index == 0
    assert (wire.now_s, inbox.statistics.waited_s) == (3.0, 3.0)
    assert inbox.take(10.0).index == 1
    assert (wire.now_s, inbox.statistics.waited_s) == (3.0, 3.0)
    assert inbox.statistics.peak_depth == 2


def test_a_take_gives_up_after_its_time_even_if_others_came(monkeypatch: pytest.MonkeyPatch):
    wire = TimedWire(monkeypatch)
    inbox = Inbox("inbox", wire, 3)
    wire.frames_at = [(4.0, encode(1, numbered(1))), (50.0, encode(0, numbered(0)))]
    assert inbox.take(10.0) is None
    assert wire.waits == [10.0, 6.0]
    assert (wire.now_s, inbox.statistics.waited_s) == (10.0, 10.0)
    assert inbox.take() is None
    assert (wire.now_s, inbox.statistics.waited_s) == (10.0, 10.0)


def test_a_sender_waits_for_a_credit_only_when_it_has_none(monkeypatch: pytest.MonkeyPatch):
    wire = TimedWire(monkeypatch)
    outbox = Outbox("outbox", wire, 1)
    assert outbox.ready(10.0)
    assert (wire.waits, outbox.statistics.waited_s) == ([], 0.0)
    outbox.put(numbered(0))
    assert not outbox.ready(10.0)
    assert (wire.now_s, outbox.statistics.waited_s) == (10.0, 10.0)
    assert not outbox.ready()
    wire.credits_at = [14.0]
    assert outbox.ready(10.0)
    assert (wire.now_s, outbox.statistics.waited_s) == (14.0, 14.0)
    assert outbox.statistics.depth == 0


def test_settling_waits_until_every_message_is_taken(monkeypatch: pytest.MonkeyPatch):
    wire = TimedWire(monkeypatch)
    outbox = Outbox("outbox", wire, 3)
    outbox.put(numbered(0))
    outbox.put(numbered(1))
    wire.credits_at = [3.0, 5.0]
    outbox.settle(10.0)
    assert (wire.now_s, outbox.statistics.depth) == (5.0, 0)
    outbox.settle(10.0)
    assert wire.now_s == 5.0


def test_settling_gives_up_after_its_time(monkeypatch: pytest.MonkeyPatch):
    wire = TimedWire(monkeypatch)
    outbox = Outbox("outbox", wire, 3)
    outbox.put(numbered(0))
    outbox.put(numbered(1))
    wire.credits_at = [4.0]
    outbox.settle(10.0)
    assert wire.waits == [10.0, 6.0]
    assert (wire.now_s, outbox.statistics.depth) == (10.0, 1)
    outbox.settle(0.0)
    assert (wire.now_s, outbox.statistics.depth) == (10.0, 1)


def test_what_is_answered_is_taken_by_its_answer_and_by_no_credit():
    wire = Wire()
    outbox, inbox = Outbox("link", wire, 2), Inbox("link", wire, 2)
    for index, kind in enumerate((Kind.PUSH, Kind.REPLY)):
        outbox.put(Message(kind, index))
        wire.delivered.append(wire.sent[-1])
    assert [inbox.take().kind, inbox.take().kind] == [Kind.PUSH, Kind.REPLY]
    assert wire.granted == 0
    assert not outbox.has_room()
    outbox.answered()
    assert outbox.has_room()
    assert not outbox.has_room(2)
    outbox.put(Message(Kind.WORD, 2))
    wire.delivered.append(wire.sent[-1])
    assert inbox.take().index == 2
    assert wire.granted == 1
    outbox.answered()
    outbox.answered()
    with pytest.raises(MailboxError, match="more credits back than it had spent"):
        outbox.answered()
