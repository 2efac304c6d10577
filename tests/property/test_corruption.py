"""No damaged message is ever taken for a good one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actors.errors import CorruptMessageError, MailboxError
from actors.wires.frames import decode, encode
from actors.wires.local_wire import local_wire
from actors.wires.mailbox import Inbox, Outbox
from actors.wires.messages import Kind, Message

pytestmark = pytest.mark.property

CASES = settings(max_examples=80, deadline=None, derandomize=True)
Frames = list[bytes]


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Markers, and payloads of all sizes at which the hash or the tensor takes another path."""
    small = st.sampled_from([0, 1, 2, 3, 8, 9, 17, 129, 241, 1025, 5000])
    sizes = draw(st.lists(small | st.integers(32_769, 32_800), max_size=4))
    fill = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    random = draw(st.booleans())
    tensors = tuple(
        torch.randint(0, 256 if random else 1, (size,), dtype=torch.uint8, generator=fill)
        for size in sizes
    )
    absent = (None,) * draw(st.integers(0, 1))
    return Message(draw(st.sampled_from(Kind)), draw(st.integers(0, 2**64 - 1)), tensors + absent)


@st.composite
def sent(draw: st.DrawFn) -> Frames:
    """The frames of a message."""
    return [bytes(f) for f in encode(draw(st.integers(0, 2**64 - 1)), draw(messages()))]


def assert_refused(frames: Frames) -> None:
    with pytest.raises(CorruptMessageError):
        decode(frames)


@CASES
@given(frames=sent(), data=st.data())
def test_one_changed_byte_is_noticed_wherever_it_is(frames: Frames, data: st.DataObject):
    which = data.draw(st.integers(0, len(frames) - 1))
    at = data.draw(st.integers(0, len(frames[which]) - 1))
    damaged = bytearray(frames[which])
    damaged[at] ^= data.draw(st.integers(1, 255))
    assert_refused([*frames[:which], bytes(damaged), *frames[which + 1 :]])


def test_every_single_changed_bit_of_a_small_message_is_noticed():
    tensors = (torch.arange(3.0), None, torch.tensor([True, False]))
    frames = [bytes(f) for f in encode(7, Message(Kind.BATCH, 3, tensors))]
    for which, frame in enumerate(frames):
        for bit in range(8 * len(frame)):
            damaged = bytearray(frame)
            damaged[bit // 8] ^= 1 << bit % 8
            assert_refused([*frames[:which], bytes(damaged), *frames[which + 1 :]])


@CASES
@given(frames=sent(), data=st.data())
def test_frames_in_another_order_are_noticed(frames: Frames, data: st.DataObject):
    others = data.draw(st.permutations(frames))
    assume(others != frames)
    assert_refused(others)


@CASES
@given(frames=sent(), data=st.data())
def test_a_cut_frame_is_noticed(frames: Frames, data: st.DataObject):
    which = data.draw(st.integers(0, len(frames) - 1))
    kept = data.draw(st.integers(0, len(frames[which]) - 1))
    assert_refused([*frames[:which], frames[which][:kept], *frames[which + 1 :]])


@CASES
@given(frames=sent(), data=st.data())
def test_a_missing_and_an_additional_frame_are_noticed(frames: Frames, data: st.DataObject):
    which = data.draw(st.integers(0, len(frames) - 1))
    assert_refused([*frames[:which], *frames[which + 1 :]])
    more = data.draw(st.binary(max_size=20))
    assert_refused([*frames[: which + 1], more, *frames[which + 1 :]])


@CASES
@given(frames=sent(), data=st.data())
def test_bytes_that_slip_from_one_frame_into_the_next_are_noticed(
    frames: Frames, data: st.DataObject
):
    assume(len(frames) > 1)
    which = data.draw(st.integers(0, len(frames) - 2))
    both = frames[which] + frames[which + 1]
    cut = data.draw(st.integers(0, len(both)))
    assume(cut != len(frames[which]))
    assert_refused([*frames[:which], both[:cut], both[cut:], *frames[which + 2 :]])


@CASES
@given(one=sent(), other=sent())
def test_the_tensors_of_another_message_are_noticed(one: Frames, other: Frames):
    assume(one[1:] != other[1:])
    assert_refused([one[0], *other[1:]])


def test_an_inbox_names_its_link_and_does_not_hand_the_message_out():
    sending, receiving = local_wire()
    outbox, inbox = Outbox("out", sending, 2), Inbox("features 0->1", receiving, 2)
    tensor = torch.zeros(40_000)
    outbox.put(Message(Kind.BATCH, 0, (tensor,)))
    tensor[0] = 1
    with pytest.raises(MailboxError, match="features 0->1: the message with sequence number 0"):
        inbox.take()
    assert inbox.take() is None
    assert inbox.statistics.messages == 0
