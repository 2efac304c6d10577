"""Messages: what goes in comes out bit for bit, and what is no message is refused."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence

import pytest
import torch
import xxhash
from torch import Tensor

from actors.errors import CorruptMessageError, LinkError, MailboxError
from actors.units import Unit
from actors.wires.frames import PACKED_BYTES, decode, encode
from actors.wires.messages import Kind, Message, size_bytes

pytestmark = pytest.mark.unit

DTYPES = [
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
]


def arrive(message: Message, sequence: int = 0) -> tuple[int, Message]:
    """Encode, copy every frame as a wire does, decode."""
    return decode([bytearray(frame) for frame in encode(sequence, message)])


def carried(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return arrive(Message(Kind.BATCH, 0, tensors))[1].tensors


def assert_same(actual: Tensor | None, expected: Tensor | None) -> None:
    if expected is None:
        assert actual is None
        return
    assert actual is not None
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert torch.equal(actual, expected)


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (3, 1, 2)], ids=str)
def test_a_tensor_of_any_dtype_arrives_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]):
    values = torch.tensor([1, 0, 3, 100, 127, 2])
    sent = values[: torch.Size(shape).numel()].to(dtype).reshape(shape)
    (got,) = carried(sent)
    assert_same(got, sent)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_infinities_signed_zeros_and_nan_arrive_bit_for_bit(dtype: torch.dtype):
    sent = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1 / 3]).to(dtype)
    (got,) = carried(sent)
    assert got is not None
    assert got.dtype == dtype
    assert torch.equal(got.view(torch.uint8), sent.view(torch.uint8))


def test_complex_tensors_keep_their_imaginary_part():
    sent = torch.tensor([1 + 2j, -3.5j])
    assert_same(carried(sent)[0], sent)


def test_a_conjugate_view_arrives_conjugated():
    sent = torch.tensor([1 + 2j, -3.5j]).conj()
    assert_same(carried(sent)[0], torch.tensor([1 - 2j, 3.5j]))


@pytest.mark.parametrize(
    "sent",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(10)[1::3],
        torch.arange(3.0).expand(4, 3),
        torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.arange(12.0)[4:8],
        torch.arange(10.0).reshape(2, 5)[:1, 3],
        torch.arange(10.0).reshape(2, 5)[1:, 2:3],
    ],
    ids=[
        "transposed",
        "strided",
        "expanded",
        "channels last",
        "offset",
        "one element of a column",
        "one element in two dimensions",
    ],
)
def test_a_view_arrives_with_its_own_elements_in_their_order(sent: Tensor):
    assert_same(carried(sent)[0], sent)


def test_a_tensor_that_requires_grad_arrives_without_a_graph():
    sent = (torch.ones(3, requires_grad=True) * 2).tanh()
    (got,) = carried(sent)
    assert got is not None
    assert not got.requires_grad
    assert_same(got, sent.detach())


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (0, 5)], ids=str)
def test_an_empty_tensor_keeps_shape_and_dtype_and_shifts_no_other(shape: tuple[int, ...]):
    sent = (torch.arange(2), torch.empty(shape, dtype=torch.int16), torch.tensor([True, False]))
    got = carried(*sent)
    assert len(got) == 3
    for one, other in zip(got, sent, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    "sent",
    [
        (None,),
        (None, torch.ones(2)),
        (torch.ones(2), None, None, torch.arange(3)),
        (torch.tensor(1.0), torch.arange(2), torch.zeros(2, 2, dtype=torch.float64)),
    ],
    ids=["none", "none first", "nones between", "mixed"],
)
def test_absent_gradients_stay_absent_and_the_others_keep_their_places(
    sent: tuple[Tensor | None, ...],
):
    got = carried(*sent)
    assert len(got) == len(sent)
    for one, other in zip(got, sent, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_a_marker_is_one_small_frame(kind: Kind):
    frames = encode(0, Message(kind, 12345678901))
    assert len(frames) == 1
    assert memoryview(frames[0]).nbytes <= 48
    assert decode(frames)[1] == Message(kind, 12345678901)


def test_the_unit_of_a_message_arrives():
    unit = Unit(batch=2**40, part=2, parts=7, share=1 / 7)
    _, got = arrive(Message.of(unit, (torch.ones(1),)))
    assert got.kind is Kind.BATCH
    assert got.unit == unit


@pytest.mark.parametrize("sequence", [0, 1, 2**32, 2**64 - 1])
def test_the_sequence_number_arrives(sequence: int):
    assert arrive(Message(Kind.EPOCH, 3), sequence) == (sequence, Message(Kind.EPOCH, 3))


# ------------------------------------------------------------------ memory


def test_the_header_does_not_grow_with_large_tensors():
    def header(*tensors: Tensor) -> int:
        return memoryview(encode(0, Message(Kind.BATCH, 0, tensors))[0]).nbytes

    assert header(torch.zeros(2, 16, 28, 28)) == header(torch.zeros(32, 16, 28, 28)) <= 80


def test_small_tensors_travel_with_the_header_and_large_ones_alone():
    large = torch.zeros(PACKED_BYTES // 8 + 1, dtype=torch.float64)
    small = (torch.zeros(3, 5, dtype=torch.float64), None, torch.zeros(7, dtype=torch.int16))
    frames = encode(0, Message(Kind.BATCH, 0, (*small, large, large[:-1])))
    assert [memoryview(frame).nbytes for frame in frames[1:]] == [PACKED_BYTES + 8]
    assert len(encode(0, Message(Kind.BATCH, 0, small))) == 1


def test_small_and_large_tensors_arrive_in_their_order():
    large = torch.arange(PACKED_BYTES, dtype=torch.float64)
    sent = (torch.arange(5, dtype=torch.int8), large, None, torch.arange(3.0), large + 1)
    for one, other in zip(carried(*sent), sent, strict=True):
        assert_same(one, other)


def test_whole_numbers_travel_with_the_tensors():
    message = Message(Kind.PUSH, 3, (torch.arange(3.0),), words=(-(2**63), 0, 2**63 - 1))
    assert arrive(message)[1].words == message.words


def test_size_counts_the_bytes_of_all_tensors():
    sent = (torch.zeros(3, 5, dtype=torch.float64), None, torch.zeros(7, dtype=torch.bool))
    assert size_bytes(Message(Kind.BATCH, 0, sent)) == 127
    assert size_bytes(Message(Kind.FINISH, 0)) == 0


def test_encoding_refers_to_the_memory_of_a_large_contiguous_tensor():
    sent = torch.arange(float(PACKED_BYTES))
    frames = encode(0, Message(Kind.BATCH, 0, (sent,)))
    assert torch.frombuffer(frames[1], dtype=torch.uint8).data_ptr() == sent.data_ptr()


def test_decoding_shares_the_memory_of_writable_frames_where_torch_would_have_put_them():
    header, body = encode(0, Message(Kind.BATCH, 0, (torch.ones(PACKED_BYTES),)))
    at = _memory(memoryview(body).nbytes, 0)
    at[:] = body
    (got,) = decode([header, at])[1].tensors
    at[:] = bytes(len(at))
    assert got is not None
    assert not got.any()


def _memory(size: int, offset: int) -> memoryview:
    """Return bytes that begin so far behind a multiple of 64."""
    memory = memoryview(bytearray(size + 128))
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    first = -start % 64 + offset
    return memory[first : first + size]


def test_decoding_copies_read_only_frames():
    frames = [bytes(frame) for frame in encode(0, Message(Kind.BATCH, 0, (torch.ones(4),)))]
    before = list(frames)
    (got,) = decode(frames)[1].tensors
    assert got is not None
    got.zero_()
    assert frames == before
    assert_same(decode(frames)[1].tensors[0], torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("offset", [0, 1, 2, 4, 8, 16, 32])
def test_frames_at_any_address_arrive_where_torch_would_have_put_them(
    dtype: torch.dtype, offset: int
):
    """Kernels add in an order that depends on where memory begins; a run must not."""
    sent = [torch.arange(size).to(dtype) for size in (5, 3, PACKED_BYTES, 1)]
    frames = []
    for frame in encode(0, Message(Kind.BATCH, 0, tuple(sent))):
        at = _memory(memoryview(frame).nbytes, offset)
        at[:] = frame
        frames.append(at)
    assert len(frames) == 2
    for got, expected in zip(decode(frames)[1].tensors, sent, strict=True):
        assert got is not None
        assert got.data_ptr() % 64 == 0
        assert_same(got, expected)


# ------------------------------------------------------------------ what is refused

Frames = list[bytes]
FIXED = "<QBBBQIId"
LARGE = PACKED_BYTES


def good() -> Frames:
    tensors = (torch.arange(6.0 * LARGE).reshape(2, -1), torch.arange(LARGE))
    return [bytes(frame) for frame in encode(0, Message(Kind.BATCH, 0, tensors))]


def header(*, kind: int = 0, code: int = 0, shape: Sequence[int] = (2,)) -> bytes:
    fixed = struct.pack(FIXED, 0, kind, 1, 0, 0, 0, 1, 1.0)
    return bytes(8) + fixed + struct.pack(f"<BB{len(shape)}Q", code, len(shape), *shape)


def signed(frames: Frames) -> Frames:
    """The frames with the checksum of a sender that meant them so."""
    if not frames or len(frames[0]) < 8:
        return frames
    checksum = 0
    for part in (frames[0][8:], *frames[1:]):
        checksum = xxhash.xxh3_64_intdigest(part, checksum)
    return [struct.pack("<Q", checksum) + frames[0][8:], *frames[1:]]


def test_the_malformed_frames_below_are_made_from_good_ones():
    sequence, got = decode(good())
    assert (sequence, len(got.tensors)) == (0, 2)
    assert signed(good()) == good()
    (one,) = decode(signed([header(), struct.pack("<2f", 1, 2)]))[1].tensors
    assert_same(one, torch.tensor([1.0, 2.0]))


MALFORMED: dict[str, Callable[[], Frames]] = {
    "no frame": list,
    "an empty header": lambda: [b""],
    "a header cut in the checksum": lambda: [good()[0][:5], *good()[1:]],
    "a header of a checksum": lambda: [good()[0][:8], *good()[1:]],
    "a header cut in the fixed part": lambda: [good()[0][:28], *good()[1:]],
    "a header cut before the first tensor": lambda: [good()[0][:42], *good()[1:]],
    "a header cut in a shape": lambda: [good()[0][:-3], *good()[1:]],
    "a header with something behind": lambda: [good()[0] + b"\0", *good()[1:]],
    "a header without its small tensor": lambda: [header(code=32)],
    "a header that ends in its small tensor": lambda: [header(code=32) + bytes(9)],
    "a small tensor that ends too late": lambda: [header(code=32, shape=(3,)) + bytes(13)],
    "a frame missing": lambda: good()[:-1],
    "a frame too many": lambda: [*good(), b"more"],
    "a frame too short": lambda: [good()[0], good()[1][:-4], good()[2]],
    "a frame too long": lambda: [good()[0], good()[1] + bytes(4), good()[2]],
    "a frame that ends in an element": lambda: [good()[0], good()[1][:-1], good()[2]],
    "an empty frame": lambda: [good()[0], b"", good()[2]],
    "frames in the wrong order": lambda: [good()[0], good()[2], good()[1]],
    "an unknown kind": lambda: [header(kind=99), bytes(8)],
    "an unknown dtype": lambda: [header(code=77), bytes(8)],
    "a shape of another size": lambda: [header(shape=(3,)), bytes(8)],
    "a shape beyond memory": lambda: [header(shape=(2**62, 2**62)), bytes(8)],
    "a dimension beyond int64": lambda: [header(shape=(2**63,)), bytes(8)],
    "an empty shape beyond int64": lambda: [header(shape=(0, 2**63))],
}


malformed = pytest.mark.parametrize("frames", MALFORMED.values(), ids=MALFORMED.keys())


@malformed
def test_frames_that_are_not_one_message_are_refused_whatever_their_checksum(
    frames: Callable[[], Frames],
):
    with pytest.raises(CorruptMessageError, match=r"labels 0->1: frames of .* not one message"):
        decode(signed(frames()), "labels 0->1")


@malformed
def test_frames_that_are_not_as_they_were_sent_are_refused(frames: Callable[[], Frames]):
    with pytest.raises(CorruptMessageError, match=r"not one message|not arrive as it was put"):
        decode(frames())


def test_the_refusal_tells_the_sizes_of_the_frames():
    with pytest.raises(MailboxError, match=r"frames of \[53, 7\] bytes"):
        decode(signed([header(), bytes(7)]))


# ------------------------------------------------------------------ what is damaged


def test_damage_is_told_with_link_number_and_both_checksums():
    frames = [bytes(f) for f in encode(12345, Message(Kind.BATCH, 0, (torch.zeros(LARGE),)))]
    expected = struct.unpack_from("<Q", frames[0])[0]
    frames[1] = b"\1" + frames[1][1:]
    found = struct.unpack_from("<Q", signed(frames)[0])[0]
    with pytest.raises(CorruptMessageError) as caught:
        decode(frames, "gradients 2->1")
    text = str(caught.value)
    assert "gradients 2->1: the message with sequence number 12345" in text
    assert f"was {expected:#018x}, but now it is {found:#018x}" in text


def test_a_large_tensor_that_is_written_after_it_was_put_is_noticed():
    sent = torch.zeros(LARGE)
    frames = encode(0, Message(Kind.BATCH, 0, (sent,)))
    decode(frames)
    sent[500] = 1
    with pytest.raises(CorruptMessageError, match="writes into a tensor that it has passed on"):
        decode(frames)


@pytest.mark.parametrize("kind", [CorruptMessageError, LinkError])
def test_the_errors_of_a_link_are_errors_of_mailboxes_and_survive_pickling(
    kind: type[MailboxError],
):
    copy = pickle.loads(pickle.dumps(kind("the link was cut")))  # noqa: S301
    assert type(copy) is kind
    assert isinstance(copy, MailboxError)
    assert str(copy) == "the link was cut"


# ------------------------------------------------------------------ what cannot be sent


def test_a_dtype_that_messages_cannot_carry_is_named_with_the_way_out():
    sent = torch.zeros(2).to(torch.float8_e5m2)
    with pytest.raises(MailboxError, match=r"got torch\.float8_e5m2: convert it in the block"):
        encode(0, Message(Kind.BATCH, 0, (sent,)))
