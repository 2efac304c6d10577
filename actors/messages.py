"""One message between two stages: a small header and the raw bytes of its tensors, no pickle.

frame 0   checksum       xxh3_64 of all that follows, frame by frame
          fixed part     sequence, kind, tensors, index, part, parts, share
          per tensor     dtype, dimensions, sizes
frame 1…  one frame per tensor, its elements in C order; none for an absent gradient

The checksum is made of the tensors' memory as it is when the message is put, and made again of
what has arrived. So it tells of damage on the way, and just as well of a sender that wrote into a
tensor after it had sent it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
import xxhash
from torch import Tensor
from typing_extensions import Buffer

from actors.errors import CorruptMessageError, MailboxError
from actors.protocols import Tensors, Unit

__all__ = ["Kind", "Message", "decode", "encode", "size_bytes"]

_CHECKSUM = struct.Struct("<Q")
_FIXED = struct.Struct("<QBBQIId")
_TENSOR = struct.Struct("<BB")
_ABSENT = 255
_DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.complex128,
)
_AS_THEY_ARE = {torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8}
"""What numpy knows too, so that a contiguous tensor's memory is its buffer."""
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


class Kind(IntEnum):
    """What a message is for."""

    BATCH = 0
    """Features, labels or error gradients of one unit of training."""
    EVALUATE = 1
    """Features or labels of one test batch."""
    EPOCH = 2
    """Marker: the epoch `index` is over, report it."""
    DRAIN = 3
    """Marker: no training batch follows, the pipeline empties."""
    FINISH = 4
    """Marker: nothing follows."""
    TOKEN = 5
    """Lock step only: the sender's side of the pipeline has ended tick `index`."""
    PROBE = 6
    """Before a run: a payload that is sent back, to time the wire."""
    CHECKPOINT = 7
    """Marker: every stage saves what it is, with `index` batches behind it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `tensors` are empty for markers and tokens."""

    kind: Kind
    index: int
    tensors: Tensors = ()
    part: int = 0
    parts: int = 1
    share: float = 1.0

    @classmethod
    def of(cls, unit: Unit, tensors: Tensors) -> Message:
        """Return the message that carries `tensors` of a unit of training."""
        return cls(Kind.BATCH, unit.batch, tensors, unit.part, unit.parts, unit.share)

    @property
    def unit(self) -> Unit:
        """The unit of training that a BATCH message belongs to."""
        return Unit(self.index, self.part, self.parts, self.share)


def size_bytes(message: Message) -> int:
    """Return the bytes of the tensors of a message."""
    return sum(t.numel() * t.element_size() for t in message.tensors if t is not None)


def encode(sequence: int, message: Message) -> list[Buffer]:
    """Return the frames of a message; the tensors' memory is referred to, not copied.

    Whoever calls must leave the tensors unwritten from now on. Tensors elsewhere than on the CPU
    are copied to it.

    Raises:
        MailboxError: a tensor has a dtype that messages cannot carry.
    """
    header = bytearray(
        _FIXED.pack(
            sequence,
            message.kind,
            len(message.tensors),
            message.index,
            message.part,
            message.parts,
            message.share,
        )
    )
    frames: list[Buffer] = []
    for tensor in message.tensors:
        if tensor is None:
            header += _TENSOR.pack(_ABSENT, 0)
            continue
        code = _CODES.get(tensor.dtype)
        if code is None:
            raise MailboxError(
                f"a message carries tensors of {', '.join(str(d) for d in _DTYPES)}, "
                f"but got {tensor.dtype}: convert it in the block before the cut"
            )
        header += _TENSOR.pack(code, tensor.ndim)
        header += struct.pack(f"<{tensor.ndim}Q", *tensor.shape)
        if tensor.numel():
            frames.append(_plain(tensor).numpy().data.cast("B"))
    return [_CHECKSUM.pack(_checksum(header, frames)) + header, *frames]


def decode(frames: Sequence[Buffer], link: str = "a link") -> tuple[int, Message]:
    """Return sequence number and message; the tensors share the frames' memory.

    Args:
        frames: as they came.
        link: what the link is called in errors.

    Raises:
        CorruptMessageError: the frames are not those of one message as it was put.
    """
    try:
        (expected,) = _CHECKSUM.unpack_from(frames[0])
        header = memoryview(frames[0])[_CHECKSUM.size :]
        found = _checksum(header, frames[1:])
        if found != expected:
            raise CorruptMessageError(_corrupt(link, header, frames, expected, found))
        sequence, kind, count, index, part, parts, share = _FIXED.unpack_from(header)
        offset = _FIXED.size
        tensors: list[Tensor | None] = []
        bodies = iter(frames[1:])
        for _ in range(count):
            code, ndim = _TENSOR.unpack_from(header, offset)
            offset += _TENSOR.size
            if code == _ABSENT:
                tensors.append(None)
                continue
            shape = struct.unpack_from(f"<{ndim}Q", header, offset)
            offset += 8 * ndim
            tensors.append(_tensor(_DTYPES[code], shape, bodies))
        if offset != header.nbytes or next(bodies, None) is not None:
            raise ValueError("there is more than the header says")
        return sequence, Message(Kind(kind), index, tuple(tensors), part, parts, share)
    except _MALFORMED as error:
        raise CorruptMessageError(
            f"{link}: frames of {_sizes(frames)} bytes are not one message: {error}"
        ) from error


def _checksum(header: Buffer, bodies: Sequence[Buffer]) -> int:
    """Hash the frames in a chain, each seeded by those before it: order and bounds count, too."""
    checksum = xxhash.xxh3_64_intdigest(header)
    for body in bodies:
        checksum = xxhash.xxh3_64_intdigest(body, checksum)
    return checksum


def _corrupt(
    link: str, header: memoryview, frames: Sequence[Buffer], expected: int, found: int
) -> str:
    number = str(_CHECKSUM.unpack_from(header)[0]) if header.nbytes >= _CHECKSUM.size else "unknown"
    return (
        f"{link}: the message with sequence number {number}, frames of {_sizes(frames)} bytes, "
        f"did not arrive as it was put: its checksum was {expected:#018x}, but now it is "
        f"{found:#018x}. Either a block before the cut writes into a tensor that it has passed on, "
        "or the memory or the network of a machine is faulty; nothing is sent again"
    )


def _sizes(frames: Sequence[Buffer]) -> list[int]:
    return [memoryview(frame).nbytes for frame in frames]


_MALFORMED = (
    struct.error,
    IndexError,
    StopIteration,
    RuntimeError,
    ValueError,
    TypeError,
    OverflowError,
)


def _plain(tensor: Tensor) -> Tensor:
    """Return the elements in C order, one after another in the CPU's memory."""
    if tensor.is_contiguous() and tensor.numel() > 1 and tensor.dtype in _AS_THEY_ARE:
        return tensor.detach().cpu()
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().reshape(-1)
    # One element of a view may keep the view's stride, which means nothing but stops `view`.
    flat = flat.as_strided((1,), (1,)) if flat.numel() == 1 else flat.contiguous()
    return flat.view(torch.uint8)


def _tensor(dtype: torch.dtype, shape: Sequence[int], bodies: Iterator[Buffer]) -> Tensor:
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    body = memoryview(next(bodies))
    if body.readonly:
        # torch would hand out writable memory all the same; what Ray maps must not be written.
        body = memoryview(bytearray(body))
    # As bytes first: operators read whole elements from where the processor expects them.
    flat = torch.frombuffer(body, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype).reshape(shape)
