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

from actors.errors import LinkError
from actors.wires.node_memory import NodeMemory, TheirMemory, is_ticket

pytestmark = pytest.mark.unit


@pytest.fixture
def ends() -> Iterator[tuple[NodeMemory, TheirMemory]]:
    ours = NodeMemory()
    offer = ours.offer()
    assert offer is not None
    theirs = TheirMemory("features 0->1", offer)
    yield ours, theirs
    theirs.close()
    ours.close()


def frame(value: int, size: int = 100_000) -> bytearray:
    return bytearray([value]) * size


def message(ticket: bytes | None, header: bytes = b"header") -> bytes:
    assert ticket is not None
    assert is_ticket(ticket)
    return ticket + header


def test_frames_come_out_as_they_were_put_behind_their_header(ends):
    ours, theirs = ends
    for sizes in ((100_000,), (1, 70_000, 3), (300_000, 5), ()):
        sent = [frame(value + 1, size) for value, size in enumerate(sizes)]
        header, *found = theirs.take(message(ours.put(sent)))
        assert bytes(header) == b"header"
        assert [bytes(each) for each in found] == [bytes(each) for each in sent]
        del found


def test_what_is_lent_is_not_written_to_until_nobody_has_it(ends):
    ours, theirs = ends
    _, lent = theirs.take(message(ours.put([frame(1)])))
    # As a tensor: whatever shares the memory keeps the loan.
    tensor = torch.from_numpy(np.frombuffer(lent, np.uint8))[5:]
    del lent
    gc.collect()
    for value in range(2, 20):
        _, other = theirs.take(message(ours.put([frame(value)])))
        assert bytes(other) == bytes(frame(value))
        del other
    assert tensor.unique().tolist() == [1]
    assert len(ours._slots) == 2


def test_frames_that_are_kept_for_long_become_copies_and_leave_a_slot_to_pass_through(ends):
    ours, theirs = ends
    kept = [theirs.take(message(ours.put([frame(value)])))[1] for value in range(30)]
    assert [each[-1] for each in kept] == list(range(30))
    assert len(ours._slots) == 3


def test_there_is_no_room_while_everything_is_full_and_there_is_again_afterwards(ends):
    ours, theirs = ends
    tickets = [ours.put([frame(value)]) for value in range(3)]
    assert ours.put([frame(3)]) is None
    assert theirs.take(message(tickets[0]))[1][0] == 0
    assert ours.put([frame(4)]) is not None
    assert ours.put([bytearray(1 << 27)]) is None


def test_a_slot_grows_with_the_messages(ends):
    ours, theirs = ends
    for size in (70_000, 200_000, 90_000, 1_000_000, 2_000_000):
        found = theirs.take(message(ours.put([frame(7, size)])))
        assert len(found[1]) == size
        del found
    assert len(ours._slots) == 1


def test_a_slot_that_is_full_at_the_end_can_still_be_emptied():
    ours = NodeMemory()
    theirs = TheirMemory("link", ours.offer())
    ticket = ours.put([frame(3)])
    ours.close()
    assert theirs.take(message(ticket))[1][9] == 3
    theirs.close()


def test_nothing_is_left_open():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        ours = NodeMemory()
        theirs = TheirMemory("link", ours.offer())
        del theirs.take(message(ours.put([frame(3)])))[1]
        theirs.close()
        ours.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_memory_that_is_another_processes_is_not_taken_for_the_senders():
    ours = NodeMemory()
    pid, descriptor, token = struct.unpack("<QQ16s", ours.offer())
    with pytest.raises(OSError, match="another process"):
        TheirMemory("link", struct.pack("<QQ16s", pid, descriptor, token[::-1]))
    with pytest.raises(OSError, match="No such file"):
        TheirMemory("link", struct.pack("<QQ16s", pid, 2**20, token))
    ours.close()


def test_a_sender_that_is_gone_before_its_memory_was_opened_is_a_cut_link(ends):
    ours, theirs = ends
    ticket = ours.put([frame(1)])
    theirs._process = 2**22 + 1
    with pytest.raises(LinkError, match=r"the link features 0->1 was cut: .*No such file"):
        theirs.take(message(ticket))


def test_elsewhere_than_on_linux_nothing_is_offered(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert NodeMemory().offer() is None
    monkeypatch.undo()
    monkeypatch.delattr(os, "memfd_create")
    assert NodeMemory().offer() is None
