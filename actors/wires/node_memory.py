"""Large frames between two processes of one node, by memory that both have mapped.

    sender    offer ────────────── with the hello ─────────────▶  receiver opens it, or cannot
    sender    frames ──▶ slot; ticket ── with the header ─────▶  frames in the slot; it is free

A socket copies a frame into the kernel and out of it again, in pieces, and wakes a thread at both
ends for every piece; here it is copied once, whole, and read where it is. The ticket keeps the
order of the socket, and tells the receiver that the slot is full. A byte tells the sender that it
is free again, as another does that the memory is open; where nothing is, frames go by the socket.

The memory is a file that no directory has, and nothing is left of it however the two end. The
receiver finds it among the sender's file descriptors in /proc, which are for the same user only.
Where that does not work (other systems than Linux, containers that do not see each other's
processes, processors that may let the byte overtake the copy) it is not offered, or never opened.

A slot is filled before the sender goes on, so that what it writes into a tensor later harms nobody;
the message's checksum is of what the slot must hold.
"""

from __future__ import annotations

import functools
import mmap
import os
import platform
import secrets
import struct
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from actors.wires.elements import ALIGNMENT, aligned_copy

__all__ = ["NodeMemory", "TheirMemory", "is_ticket"]

_SLOTS, _LENT = 3, 2
"""Of a link; and how many of them the receiver may keep at a time."""
_SLOT_BYTES = 1 << 26
_BEGIN = 4096
"""Where the slots begin, behind the bytes that tell of them."""
_BYTES = _BEGIN + _SLOTS * _SLOT_BYTES
"""A page that is never written to is none."""
_FULL = 1
_OPEN = _SLOTS * ALIGNMENT
"""Where a byte tells that the receiver has opened the memory; before it, a byte a slot."""
_TOKEN_BYTES = 16
_OFFER = struct.Struct(f"<QQ{_TOKEN_BYTES}s")
_TICKET = struct.Struct("<8sQQ")
_SIZE = struct.Struct("<Q")
_MAGIC = b"\xffraylab\xff"


class NodeMemory:
    """The sender's end.

    Raises:
        OSError: there is no such memory here.
    """

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create") or platform.machine() not in ("x86_64", "AMD64"):
            raise OSError("memory is shared on Linux only, and on processors that keep its order")
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._descriptor = os.memfd_create(_name(token), os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._descriptor, _BYTES)
            self._map = mmap.mmap(self._descriptor, _BYTES)
        except OSError:
            os.close(self._descriptor)
            raise
        self._memory = memoryview(self._map)
        self.offer = _OFFER.pack(os.getpid(), self._descriptor, token)
        """What to tell the receiver."""

    def put(self, frames: Sequence[Buffer]) -> bytes | None:
        """Copy frames into a slot; return the ticket to send, None if there is no room now."""
        memory = self._memory
        if not memory[_OPEN]:
            return None
        views = [memoryview(frame).cast("B") for frame in frames]
        if sum([_padded(view.nbytes) for view in views]) > _SLOT_BYTES:
            return None
        for slot in range(_SLOTS):
            if memory[slot * ALIGNMENT] != _FULL:
                break
        else:
            return None
        at = _BEGIN + slot * _SLOT_BYTES
        for view in views:
            memory[at : at + view.nbytes] = view
            at += _padded(view.nbytes)
        memory[slot * ALIGNMENT] = _FULL
        ticket = _TICKET.pack(_MAGIC, slot, len(views))
        return b"".join([ticket, *[_SIZE.pack(view.nbytes) for view in views]])

    def close(self) -> None:
        """Give it back; the receiver keeps what it has opened."""
        self._memory.release()
        self._map.close()
        os.close(self._descriptor)


class TheirMemory:
    """The receiver's end.

    Nothing need be closed: the memory stays until nobody has any of it.

    Args:
        offer: of the sender.

    Raises:
        OSError: the sender's memory cannot be reached.
    """

    def __init__(self, offer: bytes) -> None:
        process, descriptor, token = _OFFER.unpack(offer)
        path = Path(f"/proc/{process}/fd/{descriptor}")
        # Of another container, the process of this number is another one.
        if str(path.readlink()) != f"/memfd:{_name(token)} (deleted)":
            raise OSError(f"{path} is not the sender's memory")
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._memory: NDArray[np.uint8] = np.frombuffer(mmap.mmap(opened, _BYTES), np.uint8)
        finally:
            os.close(opened)
        self._loans: dict[int, weakref.ref[NDArray[np.uint8]]] = {}
        """By slot."""
        self._memory[_OPEN] = 1

    def take(self, frame: Buffer) -> list[Buffer]:
        """Return the frames of a message whose header comes behind a ticket.

        Those of the ticket are the slot itself, which is free once nobody has them any more; or
        copies, if others are kept for long.
        """
        view = memoryview(frame)
        _, slot, count = _TICKET.unpack_from(view)
        header = _TICKET.size + _SIZE.size * count
        at = _BEGIN + slot * _SLOT_BYTES
        loan = self._memory[at : at + _SLOT_BYTES]
        lends = len(self._loans) < _LENT
        frames: list[Buffer] = [view[header:]]
        whole, begin = loan.data, 0
        for (size,) in _SIZE.iter_unpack(view[_TICKET.size : header]):
            body = whole[begin : begin + size]
            frames.append(body if lends else aligned_copy(body))
            begin += _padded(size)
        if lends:
            # Whatever shares the frames' memory refers to this one array in the end.
            self._loans[slot] = weakref.ref(loan, functools.partial(self._returned, slot))
        else:
            self._memory[slot * ALIGNMENT] = 0
        return frames

    def _returned(self, slot: int, _: object) -> None:
        """Nobody has a slot's frames any more."""
        del self._loans[slot]
        self._memory[slot * ALIGNMENT] = 0


def is_ticket(frame: Buffer) -> bool:
    """Tell whether a frame begins with a ticket, and not with a header's checksum."""
    view = memoryview(frame)
    return view.nbytes >= _TICKET.size and view[: len(_MAGIC)] == _MAGIC


def _name(token: bytes) -> str:
    return f"raylab-{token.hex()}"


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT
