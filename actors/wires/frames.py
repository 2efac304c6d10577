"""A message as frames on a wire: a small header and the raw bytes of its tensors, no pickle.

frame 0   checksum       xxh3_64 of all that follows, frame by frame
          fixed part     sequence, kind, tensors, words, index, part, parts, share
          loss share     of micro-batches alone
          words          whole numbers of the message
          per tensor     dtype and where its elements are, dimensions, sizes
          small tensors  their elements in C order, one behind the other, each from a multiple of
                         64 bytes on as counted from the first
frame 1…  one frame per larger tensor, its elements in C order;
          where tensors are carried: what their carrier sends along (`carrier`)

A frame costs more than the copy of a small tensor, so that most messages are one frame.

The checksum is made of a larger tensor's memory as it is when the message is put, and made again of
what has arrived. So it tells of damage on the way, and just as well of a sender that wrote into a
tensor after it had sent it. What is carried outside the frames is not in it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch
import xxhash
from torch import Tensor
from typing_extensions import Buffer

from actors.errors import CorruptMessageError, MailboxError
from actors.wires.carrier import Arrival, TensorCarrier, TensorSpec
from actors.wires.elements import ALIGNMENT, DTYPES, aligned_copy, elements, tensor_at
from actors.wires.inline_carrier import INLINE
from actors.wires.messages import Kind, Message

__all__ = ["PACKED_BYTES", "Envelope", "decode", "encode", "unpack"]

PACKED_BYTES = 32_768
"""Tensors up to this size travel in the first frame."""
_CHECKSUM = struct.Struct("<Q")
_FIXED = struct.Struct("<QBBBQIId")
_LOSS_SHARE = struct.Struct("<d")
_BEGIN = _CHECKSUM.size + _FIXED.size
_SHAPES = [struct.Struct(f"<{dims}Q") for dims in range(65)]
_TENSORS = [struct.Struct(f"<BB{dims}Q") for dims in range(65)]
_WORDS = [struct.Struct(f"<{count}q") for count in range(256)]
_PADDING = [bytes(-size % ALIGNMENT) for size in range(ALIGNMENT)]
_KINDS = {int(kind): kind for kind in Kind}
_ABSENT = 255
_CARRIED, _PACKED = 64, 32
"""Added to the dtype of a tensor whose elements are not in the frames, or are in the first one."""
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}


class Envelope:
    """A message whose larger tensors may still be on their way.

    Args:
        sequence: its number.
        message: its tensors are those that have come; None where one is on its way, or absent.
        coming: of the others, their places among the tensors.
        specs: of the others.
        frames: behind the header.
    """

    __slots__ = ("_arrival", "_coming", "_frames", "_message", "_specs", "sequence")

    def __init__(
        self,
        sequence: int,
        message: Message,
        coming: Sequence[int],
        specs: Sequence[TensorSpec],
        frames: Sequence[Buffer],
    ) -> None:
        self.sequence = sequence
        self._message = message
        self._coming = coming
        self._specs = specs
        self._frames = frames
        self._arrival: Arrival | None = None

    def receive(self, carrier: TensorCarrier, link: str = "a link") -> None:
        """Start receiving the tensors.

        Raises:
            MailboxError: they come by another carrier.
        """
        carries = carrier.carries
        for spec in self._specs:
            if spec.carried is not carries:
                raise MailboxError(
                    f"{link}: its two ends have chosen different carriers of tensors"
                )
        if self._specs or carries:
            self._arrival = carrier.receive(self._specs, self._frames)

    def opened(self) -> Message:
        """Return the message with its tensors, waiting for them."""
        if self._arrival is None or not self._coming:
            return self._message
        tensors = list(self._message.tensors)
        for place, tensor in zip(self._coming, self._arrival.wait(), strict=True):
            tensors[place] = tensor
        return self._message._replace(tensors=tuple(tensors))


def encode(sequence: int, message: Message, carrier: TensorCarrier = INLINE) -> list[Buffer]:
    """Return the frames of a message; the memory of larger tensors is referred to, not copied.

    Whoever calls must leave the tensors unwritten from now on.

    Raises:
        LinkError: the carrier's other end is gone.
        MailboxError: a tensor has a dtype that messages cannot carry.
    """
    kind, index, tensors, part, parts, share, words, loss_share = message
    fixed = _FIXED.pack(sequence, kind, len(tensors), len(words), index, part, parts, share)
    of_loss = _LOSS_SHARE.pack(loss_share) if parts > 1 else b""
    about: list[Buffer] = [_ROOM, fixed, of_loss, _WORDS[len(words)].pack(*words)]
    packed: list[Buffer] = []
    full: list[Tensor] = []
    carries = carrier.carries
    end = 0
    for tensor in tensors:
        if tensor is None:
            about.append(_NOTHING)
            continue
        code = _CODES.get(tensor.dtype)
        if code is None:
            raise MailboxError(
                f"a message carries tensors of {', '.join(str(d) for d in DTYPES)}, "
                f"but got {tensor.dtype}: convert it in the block before the cut"
            )
        shape, size = tensor.shape, tensor.nbytes
        if carries:
            code |= _CARRIED
            if size:
                full.append(tensor)
        elif size > PACKED_BYTES:
            full.append(tensor)
        elif size:
            code |= _PACKED
            padding = _PADDING[end % ALIGNMENT]
            packed.append(padding)
            packed.append(elements(tensor).data)
            end += len(padding) + size
        about.append(_TENSORS[len(shape)].pack(code, len(shape), *shape))
    frames = carrier.send(full) if full or carries else []
    header = bytearray().join(about + packed)
    _CHECKSUM.pack_into(header, 0, _checksum(memoryview(header)[8:], frames))
    return [header, *frames]


def decode(frames: Sequence[Buffer], link: str = "a link") -> tuple[int, Message]:
    """Return sequence number and message of inline frames, whose memory its tensors share.

    Args:
        frames: as they came.
        link: what the link is called in errors.

    Raises:
        CorruptMessageError: the frames are not those of one message as it was put.
    """
    envelope = unpack(frames, link)
    envelope.receive(INLINE, link)
    return envelope.sequence, envelope.opened()


def unpack(frames: Sequence[Buffer], link: str = "a link") -> Envelope:
    """Return what frames say, its larger tensors not yet received.

    Args:
        frames: as they came.
        link: what the link is called in errors.

    Raises:
        CorruptMessageError: the frames are not those of one message as it was put.
    """
    try:
        header, others = memoryview(frames[0]), frames[1:]
        (expected,) = _CHECKSUM.unpack_from(header)
        found = _checksum(header[_CHECKSUM.size :], others)
        if found != expected:
            raise CorruptMessageError(_corrupt(link, header, frames, expected, found))
        fixed = _FIXED.unpack_from(header, _CHECKSUM.size)
        sequence, kind, count, worded, index, part, parts, share = fixed
        offset = _BEGIN
        loss_share = 1.0
        if parts > 1:
            (loss_share,) = _LOSS_SHARE.unpack_from(header, offset)
            offset += _LOSS_SHARE.size
        words = _WORDS[worded].unpack_from(header, offset)
        offset += 8 * worded
        told: list[tuple[int, tuple[int, ...]]] = []
        for _ in range(count):
            code, dims = header[offset], header[offset + 1]
            told.append((code, _SHAPES[dims].unpack_from(header, offset + 2)))
            offset += 2 + 8 * dims
        tensors, coming, specs = _come(told, header[offset:])
        _check_sizes(specs, others)
        unit = (index, tuple(tensors), part, parts, share)
        message = Message(_KINDS[kind], *unit, words, loss_share)
        return Envelope(sequence, message, coming, specs, others)
    except _MALFORMED as error:
        raise CorruptMessageError(
            f"{link}: frames of {_sizes(frames)} bytes are not one message: {error}"
        ) from error


def _come(
    told: Sequence[tuple[int, tuple[int, ...]]], packed: memoryview
) -> tuple[list[Tensor | None], list[int], list[TensorSpec]]:
    """Return the tensors that have come, and of the others their places and specs."""
    if packed.nbytes:
        packed = aligned_copy(packed)
    end = 0
    tensors: list[Tensor | None] = []
    coming: list[int] = []
    specs: list[TensorSpec] = []
    for code, shape in told:
        tensor = None
        if code != _ABSENT:
            spec = _spec(code, shape)
            size = spec.bytes
            if not size:
                tensor = torch.empty(shape, dtype=spec.dtype)
            elif code & _PACKED:
                begin = end + -end % ALIGNMENT
                tensor = tensor_at(packed, begin, spec)
                end = begin + size
            else:
                coming.append(len(tensors))
                specs.append(spec)
        tensors.append(tensor)
    if end != packed.nbytes:
        raise ValueError("its length is not what the header says")
    return tensors, coming, specs


def _spec(code: int, shape: tuple[int, ...]) -> TensorSpec:
    spec = TensorSpec(DTYPES[code & ~(_CARRIED | _PACKED)], shape, bool(code & _CARRIED))
    if len(shape) != 1 or shape[0] >= 2**59:
        size = math.prod([max(1, size) for size in shape])
        if size * spec.dtype.itemsize >= 2**63:
            raise ValueError(f"no memory holds a tensor of the shape {shape}")
    return spec


def _check_sizes(specs: Sequence[TensorSpec], frames: Sequence[Buffer]) -> None:
    """Compare the frames with what the header says of them; carriers check their own."""
    if not any(spec.carried for spec in specs):
        expected = [spec.bytes for spec in specs]
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
    known = header.nbytes >= 2 * _CHECKSUM.size
    number = str(_CHECKSUM.unpack_from(header, _CHECKSUM.size)[0]) if known else "unknown"
    return (
        f"{link}: the message with sequence number {number}, frames of {_sizes(frames)} bytes, "
        f"did not arrive as it was put: its checksum was {expected:#018x}, but now it is "
        f"{found:#018x}. Either a block before the cut writes into a tensor that it has passed on, "
        "or the memory or the network of a machine is faulty; nothing is sent again"
    )


def _sizes(frames: Sequence[Buffer]) -> list[int]:
    return [memoryview(frame).nbytes for frame in frames]


_ROOM = bytes(_CHECKSUM.size)
_NOTHING = _TENSORS[0].pack(_ABSENT, 0)
_MALFORMED = (
    struct.error,
    IndexError,
    KeyError,
    StopIteration,
    RuntimeError,
    ValueError,
    TypeError,
    OverflowError,
)
