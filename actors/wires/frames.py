"""A message as frames on a wire: a small header and the raw bytes of its tensors, no pickle.

frame 0   checksum       xxh3_64 of all that follows, frame by frame
          fixed part     sequence, kind, tensors, index, part, parts, share
          per tensor     dtype and whether it is carried outside the frames, dimensions, sizes
frame 1…  one frame per tensor, its elements in C order; none for an absent or empty one;
          where tensors are carried: what their carrier sends along (`carrier`)

The checksum is made of the tensors' memory as it is when the message is put, and made again of
what has arrived. So it tells of damage on the way, and just as well of a sender that wrote into a
tensor after it had sent it. What is carried outside the frames is not in it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import xxhash
from torch import Tensor
from typing_extensions import Buffer

from actors.errors import CorruptMessageError, MailboxError
from actors.wires.carrier import Arrival, TensorCarrier, TensorSpec
from actors.wires.inline_carrier import INLINE
from actors.wires.messages import Kind, Message

__all__ = ["Envelope", "decode", "encode", "unpack"]

_CHECKSUM = struct.Struct("<Q")
_FIXED = struct.Struct("<QBBQIId")
_TENSOR = struct.Struct("<BB")
_ABSENT = 255
_CARRIED = 64
"""Added to the dtype of a tensor whose elements are not in the frames."""
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
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message whose tensors may still be on their way.

    Args:
        sequence: its number.
        message: without its tensors.
        specs: of its tensors; None for an absent one.
        frames: behind the header.
    """

    sequence: int
    message: Message
    specs: tuple[TensorSpec | None, ...]
    frames: Sequence[Buffer]

    def receive(self, carrier: TensorCarrier, link: str = "a link") -> Arrival:
        """Start receiving the tensors.

        Raises:
            MailboxError: they come by another carrier.
        """
        specs = [spec for spec in self.specs if spec is not None and spec.bytes]
        if any(spec.carried is not carrier.carries for spec in specs):
            raise MailboxError(f"{link}: its two ends have chosen different carriers of tensors")
        return carrier.receive(specs, self.frames)

    def opened(self, arrival: Arrival) -> Message:
        """Return the message with its tensors, waiting for them."""
        there = iter(arrival.wait())
        tensors: list[Tensor | None] = []
        for spec in self.specs:
            if spec is None:
                tensors.append(None)
            else:
                empty = torch.empty(spec.shape, dtype=spec.dtype) if not spec.bytes else None
                tensors.append(next(there) if empty is None else empty)
        return replace(self.message, tensors=tuple(tensors))


def encode(sequence: int, message: Message, carrier: TensorCarrier = INLINE) -> list[Buffer]:
    """Return the frames of a message; the tensors' memory is referred to, not copied.

    Whoever calls must leave the tensors unwritten from now on.

    Raises:
        LinkError: the carrier's other end is gone.
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
    full: list[Tensor] = []
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
        header += _TENSOR.pack(code | (_CARRIED if carrier.carries else 0), tensor.ndim)
        header += struct.pack(f"<{tensor.ndim}Q", *tensor.shape)
        if tensor.numel():
            full.append(tensor)
    frames = carrier.send(full)
    return [_CHECKSUM.pack(_checksum(header, frames)) + header, *frames]


def decode(frames: Sequence[Buffer], link: str = "a link") -> tuple[int, Message]:
    """Return sequence number and message of inline frames, whose memory its tensors share.

    Args:
        frames: as they came.
        link: what the link is called in errors.

    Raises:
        CorruptMessageError: the frames are not those of one message as it was put.
    """
    envelope = unpack(frames, link)
    return envelope.sequence, envelope.opened(envelope.receive(INLINE, link))


def unpack(frames: Sequence[Buffer], link: str = "a link") -> Envelope:
    """Return what frames say, its tensors not yet received.

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
        specs: list[TensorSpec | None] = []
        for _ in range(count):
            code, ndim = _TENSOR.unpack_from(header, offset)
            offset += _TENSOR.size
            if code == _ABSENT:
                specs.append(None)
                continue
            shape = struct.unpack_from(f"<{ndim}Q", header, offset)
            offset += 8 * ndim
            specs.append(_spec(code, shape))
        if offset != header.nbytes:
            raise ValueError("there is more than the header says")
        _check_sizes(specs, frames[1:])
        message = Message(Kind(kind), index, (), part, parts, share)
        return Envelope(sequence, message, tuple(specs), frames[1:])
    except _MALFORMED as error:
        raise CorruptMessageError(
            f"{link}: frames of {_sizes(frames)} bytes are not one message: {error}"
        ) from error


def _spec(code: int, shape: tuple[int, ...]) -> TensorSpec:
    spec = TensorSpec(_DTYPES[code & ~_CARRIED], shape, carried=bool(code & _CARRIED))
    if math.prod(max(1, size) for size in shape) * spec.dtype.itemsize >= 2**63:
        raise ValueError(f"no memory holds a tensor of the shape {shape}")
    return spec


def _check_sizes(specs: Sequence[TensorSpec | None], frames: Sequence[Buffer]) -> None:
    """Compare the frames with what the header says of them; carriers check their own."""
    full = [spec for spec in specs if spec is not None and spec.bytes]
    if not any(spec.carried for spec in full):
        expected = [spec.bytes for spec in full]
        if _sizes(frames) != expected:
            raise ValueError(f"the header says that they are {expected}")


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
