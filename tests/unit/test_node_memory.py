"""Frames that two processes of a node have in common memory; here both are this process."""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.wires.node_memory import NodeMemory, TheirMemory, is_ticket

pytestmark = pytest.mark.unit

Ends = tuple[NodeMemory, TheirMemory]
OFFER = "<QQ16s"


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours = NodeMemory()
    yield ours, TheirMemory(ours.offer)
    ours.close()


def frame(value: int, size: int = 100_000) -> bytearray:
    return bytearray([value]) * size


def message(ticket: bytes | None, header: bytes = b"header") -> bytes:
    assert ticket is not None
    assert is_ticket(ticket)
    return ticket + header


def address(body: memoryview) -> int:
    return torch.frombuffer(body, dtype=torch.uint8).data_ptr()


def traces() -> tuple[int, int]:
    """File descriptors of this process, and maps of memory of nodes."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("memfd:raylab-")
    return len(list(Path("/proc/self/fd").iterdir())), maps


def test_frames_come_out_as_they_were_put_behind_their_header(ends: Ends):
    ours, theirs = ends
    for sizes in ((100_000,), (1, 70_000, 3), (300_000, 5), ()):
        sent = [frame(value + 1, size) for value, size in enumerate(sizes)]
        header, *found = theirs.take(message(ours.put(sent)))
        assert bytes(header) == b"header"
        assert [bytes(each) for each in found] == [bytes(each) for each in sent]


def test_frames_are_where_torch_would_have_put_them_lent_or_copied(ends: Ends):
    ours, theirs = ends
    kept = [theirs.take(message(ours.put([frame(1, 5), frame(2)])))[1:] for _ in range(4)]
    assert {address(memoryview(each)) % 64 for found in kept for each in found} == {0}


def test_what_is_lent_is_not_written_to_until_nobody_has_it(ends: Ends):
    ours, theirs = ends
    _, lent = theirs.take(message(ours.put([frame(1)])))
    # As a tensor: whatever shares the memory keeps the loan.
    tensor = torch.from_numpy(np.frombuffer(lent, np.uint8))[5:]
    del lent
    gc.collect()
    for value in range(2, 20):
        _, other = theirs.take(message(ours.put([frame(value)])))
        assert bytes(other) == bytes(frame(value))
    assert tensor.unique().tolist() == [1]


def test_what_is_given_back_is_used_again(ends: Ends):
    ours, theirs = ends
    places = {address(theirs.take(message(ours.put([frame(1)])))[1]) for _ in range(10)}
    assert len(places) == 1


def test_frames_that_are_kept_for_long_become_copies_and_leave_a_slot_to_pass_through(ends: Ends):
    ours, theirs = ends
    kept = [theirs.take(message(ours.put([frame(value)])))[1] for value in range(30)]
    assert [bytes(each) for each in kept] == [bytes(frame(value)) for value in range(30)]


def test_there_is_no_room_while_everything_is_full_and_there_is_again_afterwards(ends: Ends):
    ours, theirs = ends
    tickets = [ours.put([frame(value)]) for value in range(3)]
    assert ours.put([frame(3)]) is None
    assert theirs.take(message(tickets[0]))[1][0] == 0
    assert ours.put([frame(4)]) is not None


def test_there_is_no_room_for_more_than_a_slot_holds(ends: Ends):
    half = bytes(1 << 25)
    assert ends[0].put([half, half, b"1"]) is None


def test_there_is_no_room_before_the_receiver_has_opened_it():
    ours = NodeMemory()
    assert ours.put([frame(1)]) is None
    TheirMemory(ours.offer)
    assert ours.put([frame(1)]) is not None
    ours.close()


def test_a_slot_that_is_full_at_the_end_can_still_be_emptied():
    ours = NodeMemory()
    theirs = TheirMemory(ours.offer)
    ticket = ours.put([frame(3)])
    ours.close()
    assert bytes(theirs.take(message(ticket))[1]) == bytes(frame(3))


def test_nothing_is_left_of_it_whoever_ends_first_and_with_whatever_in_it():
    before = traces()
    for ours_first in (True, False):
        ours = NodeMemory()
        theirs = TheirMemory(ours.offer)
        tickets = [ours.put([frame(3)]) for _ in range(3)]
        lent = theirs.take(message(tickets[0]))
        if ours_first:
            ours.close()
        del theirs
        gc.collect()
        # What is lent stays.
        assert bytes(lent[1]) == bytes(frame(3))
        if not ours_first:
            ours.close()
        del lent
        assert traces() == before


def test_what_is_not_the_senders_memory_is_not_opened():
    ours = NodeMemory()
    process, descriptor, token = struct.unpack(OFFER, ours.offer)
    with pytest.raises(OSError, match="is not the sender's memory"):
        TheirMemory(struct.pack(OFFER, process, descriptor, token[::-1]))
    with pytest.raises(OSError, match="No such file"):
        TheirMemory(struct.pack(OFFER, process, 2**20, token))
    with pytest.raises(OSError, match="No such file"):
        TheirMemory(struct.pack(OFFER, 2**22 + 1, descriptor, token))
    assert ours.put([frame(1)]) is None
    ours.close()


@pytest.mark.parametrize(("name", "value"), [("platform.machine", lambda: "aarch64"), ("os", None)])
def test_where_memory_cannot_be_shared_there_is_none(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
):
    if name == "os":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(name, value)
    with pytest.raises(OSError, match="on Linux only"):
        NodeMemory()


def test_a_header_is_no_ticket(ends: Ends):
    assert not is_ticket(b"")
    assert not is_ticket(bytes(100))
    assert not is_ticket(b"\xffraylab\xff")
