"""Large frames between two processes of one node, by memory that both have mapped.

    sender    offer ────────────── with the hello ─────────────▶  receiver opens it, or cannot
    sender    frames ──▶ slot; ticket ── with the header ─────▶ frames in the slot; it is free

A socket copies a frame into the kernel and out of it again, in pieces, and wakes a thread at both
ends for every piece; here it is copied once, whole, and read where it is. The ticket keeps the
order of the socket, and tells the receiver that the slot is full. A byte in the slot tells the
sender that it is free again; where none is free, the frames go by the socket.

The memory has no name: it is a file descriptor of the sender, which the receiver opens in /proc,
and nothing is left of it however the two end. Where that does not work (other systems than Linux,
containers that do not see each other's processes, processors that may let the byte overtake the
copy), there is no offer, or it is declined.
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

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from actors.errors import LinkError

__all__ = ["NodeMemory", "TheirMemory", "is_ticket"]

_MOST_BYTES = 1 << 26
_SLOTS, _LENT = 3, 2
"""Of a link; and how many of them the receiver may keep at a time."""
_TOKEN_BYTES = 16
_BEGIN = 64
"""Where the frames of a slot begin: a cache line of its own for the byte that tells it is full."""
_OFFER = struct.Struct(f"<QQ{_TOKEN_BYTES}s")
_TICKET = struct.Struct("<8sQQQQ")
_SIZE = struct.Struct("<Q")
_MAGIC = b"\xffraylab\xff"
_FREE, _FULL = 0, 1


class NodeMemory:
    """The sender's end."""

    def __init__(self) -> None:
        self._slots: list[_Slot] = []
        self._serial = 0
        self._offered: int | None = None

    def offer(self) -> bytes | None:
        """Return what to tell the receiver, None where nothing can be shared."""
        if not hasattr(os, "memfd_create") or platform.machine() not in ("x86_64", "AMD64"):
            return None
        token = secrets.token_bytes(_TOKEN_BYTES)
        try:
            self._offered = os.memfd_create("raylab", os.MFD_CLOEXEC)
            os.write(self._offered, token)
        except OSError:
            return None
        return _OFFER.pack(os.getpid(), self._offered, token)

    def put(self, frames: Sequence[Buffer]) -> bytes | None:
        """Copy frames into a slot; return the ticket to send, None if there is no room now."""
        views = [memoryview(frame).cast("B") for frame in frames]
        size = _BEGIN + sum(_padded(view.nbytes) for view in views)
        if size > _MOST_BYTES:
            return None
        slot = self._free(size)
        if slot is None:
            return None
        at = _BEGIN
        memory = slot.array.data
        for view in views:
            memory[at : at + view.nbytes] = view
            at += _padded(view.nbytes)
        memory[0] = _FULL
        ticket = _TICKET.pack(_MAGIC, slot.descriptor, slot.serial, slot.size, len(views))
        return b"".join([ticket, *[_SIZE.pack(view.nbytes) for view in views]])

    def close(self) -> None:
        """Give everything back; a slot that is still full later, as its ticket may be under way."""
        _closed.extend(self._slots)
        self._slots.clear()
        for slot in [each for each in _closed if each.array[0] == _FREE]:
            _closed.remove(slot)
            slot.close()
        if self._offered is not None:
            os.close(self._offered)
            self._offered = None

    def _free(self, size: int) -> _Slot | None:
        for place, slot in enumerate(self._slots):
            if slot.array[0] == _FREE:
                if slot.size < size:
                    slot.close()
                    slot = self._slots[place] = self._new(size)
                return slot
        if len(self._slots) == _SLOTS:
            return None
        self._slots.append(self._new(size))
        return self._slots[-1]

    def _new(self, size: int) -> _Slot:
        self._serial += 1
        descriptor = os.memfd_create("raylab", os.MFD_CLOEXEC)
        # Room for messages that grow; a page that is never written to is none.
        size = 1 << (size - 1).bit_length()
        os.ftruncate(descriptor, size)
        return _Slot(descriptor, self._serial, size)


class TheirMemory:
    """The receiver's end.

    Args:
        name: of the link, in errors.
        offer: of the sender.

    Raises:
        OSError: the sender's memory cannot be reached.
    """

    def __init__(self, name: str, offer: bytes) -> None:
        self._name = name
        self._slots: dict[int, _Slot] = {}
        self._loans: dict[int, weakref.ref[NDArray[np.uint8]]] = {}
        """By the number of the slot."""
        self._process, descriptor, token = _OFFER.unpack(offer)
        opened = self._open(descriptor)
        try:
            if os.pread(opened, _TOKEN_BYTES, 0) != token:
                raise OSError("another process has the sender's number here")
        finally:
            os.close(opened)

    def take(self, frame: Buffer) -> list[Buffer]:
        """Return the frames of a message whose header comes behind a ticket.

        Those of the ticket are the slot itself, which is free once nobody has them any more; or
        copies, if others are kept for long.

        Raises:
            LinkError: the sender is gone before its memory was ever opened.
        """
        _, descriptor, serial, size, count = _TICKET.unpack_from(frame)
        sizes = _SIZE.iter_unpack(memoryview(frame)[_TICKET.size : _TICKET.size + 8 * count])
        slot = self._slots.get(serial)
        if slot is None:
            slot = self._opened(descriptor, serial, size)
        frames: list[Buffer] = [memoryview(frame)[_TICKET.size + 8 * count :]]
        at = _BEGIN
        lends = len(self._loans) < _LENT
        loan = slot.array[:]
        whole = loan.data
        for (length,) in sizes:
            body = whole[at : at + length]
            frames.append(body if lends else bytearray(body))
            at += _padded(length)
        if lends:
            # Whatever shares the frames' memory refers to this one array in the end.
            self._loans[serial] = weakref.ref(loan, functools.partial(self._returned, slot))
        else:
            slot.array[0] = _FREE
        return frames

    def close(self) -> None:
        """Give everything back; what is still lent stays until nobody has it."""
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()

    def _returned(self, slot: _Slot, _: object) -> None:
        """Nobody has a slot's frames any more."""
        del self._loans[slot.serial]
        slot.array[0] = _FREE

    def _opened(self, descriptor: int, serial: int, size: int) -> _Slot:
        # A new slot comes in the place of one that was too small, or beside the others.
        for old in sorted(self._slots)[: max(0, len(self._slots) - _SLOTS)]:
            self._slots.pop(old).close()
        try:
            slot = self._slots[serial] = _Slot(self._open(descriptor), serial, size)
        except (OSError, ValueError) as error:
            raise LinkError(f"the link {self._name} was cut: {error}") from error
        return slot

    def _open(self, descriptor: int) -> int:
        return os.open(f"/proc/{self._process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)


def is_ticket(frame: Buffer) -> bool:
    """Tell whether a frame begins with a ticket, and not with a header's checksum."""
    view = memoryview(frame)
    return view.nbytes >= _TICKET.size and view[: len(_MAGIC)] == _MAGIC


class _Slot:
    """Memory that is mapped here, until nobody refers to it."""

    def __init__(self, descriptor: int, serial: int, size: int) -> None:
        self.descriptor = descriptor
        self.serial = serial
        self.size = size
        self.array: NDArray[np.uint8] = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)

    def close(self) -> None:
        """Give the file descriptor back."""
        os.close(self.descriptor)


_closed: list[_Slot] = []
"""Slots of links that are closed, full when somebody last looked."""


def _padded(size: int) -> int:
    return size + -size % _BEGIN
