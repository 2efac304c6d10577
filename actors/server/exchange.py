"""What server and workers tell each other, as messages: a header of whole numbers, then tensors.

    push    header, tensors               worker k ── pushes ──▶ server
    proof   header, names, values, tensors
    reply   header, certificate's answer, opening, answer
    news    header, answer                server ── answers ──▶ worker k

No pickle. An answer goes whole, or as what has changed of it since the link's last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.errors import MailboxError
from actors.server.changes import ChangesIn, ChangesOut, sent_tensors
from actors.server.messages import News, Proof, Push, Reply, Verdict
from actors.server.protocols import Task
from actors.units import Tensors
from actors.wires.link import Link
from actors.wires.messages import Kind, Message

__all__ = ["SERVER", "Asked", "Part", "ServerSide", "WorkerSide", "server_links"]

SERVER = 0
"""Number of the server among the members of its group; worker k is member k + 1."""
_VERDICTS: tuple[Verdict, ...] = ("none", "commit", "discard")
_REPLY_WORDS = 18
_MICRO = 1_000_000


def server_links(worker: int) -> list[Link]:
    """Return the links between the server and one worker.

    A worker sends a proof and a push at most before it hears of either. To a worker that computes
    go two pieces of news at most, so that there is always room for a reply. A push is answered by
    a reply, a task by a push, so that neither needs a credit.
    """
    member = worker + 1
    return [
        Link(box="pushes", source=member, target=SERVER, capacity=2, inline=True),
        Link(box="answers", source=SERVER, target=member, capacity=4, inline=True),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A phase as a worker hears of it, see `actors.server.protocols.Phase`."""

    number: int
    kind: str
    gather: bool
    messages: int | None
    pieces: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A certificate as the server hears of it, see `actors.server.protocols.Certificate`."""

    values: Mapping[str, float]
    tensors: Mapping[str, Tensor]


class ServerSide:
    """The server's end of one worker's links."""

    def __init__(self) -> None:
        self._changes = ChangesOut()

    def packed(self, told: Reply | News) -> Message:
        """Return the message that says this; messages must be sent in the order of packing."""
        if isinstance(told, News):
            how, tensors = self._changes.pack(told.answer)
            return Message(Kind.NEWS, told.version, (_words([told.era, how]), *tensors))
        certificate, at = (-1, ()) if told.certify is None else told.certify
        proving, certified = (0, ()) if told.certify is None else self._changes.pack(at)
        opening = told.opening or ()
        how, tensors = self._changes.pack(told.answer)
        words = [
            _VERDICTS.index(told.verdict),
            int(told.rewind),
            _or_less(told.good),
            _or_less(told.save),
            certificate,
            proving,
            told.era,
            len(opening) if told.opening is not None else -1,
            how,
            int(told.over),
        ]
        index = 0
        if told.task is not None:
            index, phase, name = told.task.number, told.task.phase, told.task.phase.kind.encode()
            words += [
                1,
                phase.number,
                int(phase.gather),
                _or_less(phase.messages),
                phase.pieces,
                told.task.version,
                told.task.number,
                len(name),
                *name,
            ]
        else:
            words += [0] * (_REPLY_WORDS - len(words))
        kind = Kind.REPLY if told.task is not None else Kind.WORD
        return Message(kind, index, (_words(words), *certified, *opening, *tensors))

    def unpacked(self, message: Message) -> Push | Proof:
        """Return what a worker has told.

        Raises:
            MailboxError: it is not a worker's message.
        """
        header, *rest = message.tensors
        words = _read(header)
        if message.kind is Kind.PUSH:
            era, phase, samples, waited = words
            return Push(
                era=era,
                phase=phase,
                number=message.index,
                tensors=tuple(rest),
                samples=samples,
                waited_s=waited / _MICRO,
            )
        if message.kind is not Kind.PROOF:
            raise MailboxError(f"a server takes pushes and proofs, but got a {message.kind.name}")
        names = json.loads(bytes(_there(rest[0]).tolist()))
        values = dict(zip(names[0], _there(rest[1]).tolist(), strict=True))
        tensors = dict(zip(names[1], (_there(each) for each in rest[2:]), strict=True))
        return Proof(number=message.index, certificate=Part(values=values, tensors=tensors))


class WorkerSide:
    """A worker's end of its links."""

    def __init__(self) -> None:
        self._changes = ChangesIn()

    def packed(self, told: Push | Proof) -> Message:
        """Return the message that says this."""
        if isinstance(told, Push):
            words = [told.era, told.phase, told.samples, round(_MICRO * told.waited_s)]
            return Message(Kind.PUSH, told.number, (_words(words), *told.tensors))
        part = told.certificate
        names = json.dumps([list(part.values), list(part.tensors)]).encode()
        tensors = (
            _words([]),
            torch.frombuffer(bytearray(names), dtype=torch.uint8),
            torch.tensor(list(part.values.values()), dtype=torch.float64),
            *part.tensors.values(),
        )
        return Message(Kind.PROOF, told.number, tensors)

    def unpacked(self, message: Message) -> Reply | News:
        """Return what the server has told; messages must be unpacked in the order of arrival.

        Raises:
            MailboxError: it is not a server's message.
        """
        header, *rest = message.tensors
        words = _read(header)
        if message.kind is Kind.NEWS:
            era, how = words
            answer = self._changes.unpack(how, tuple(rest))
            return News(era=era, version=message.index, answer=answer)
        if message.kind not in (Kind.REPLY, Kind.WORD):
            raise MailboxError(f"a worker takes replies and news, but got a {message.kind.name}")
        verdict, rewind, good, save, certificate, proving, era, opening, how, over, has = words[:11]
        sent = iter(rest)

        def some(count: int) -> Tensors:
            return tuple(next(sent) for _ in range(count))

        certify = None
        if certificate >= 0:
            there = some(sent_tensors(proving))
            certify = (certificate, self._changes.unpack(proving, there))
        opened = some(opening) if opening >= 0 else None
        answer = self._changes.unpack(how, some(sent_tensors(how)))
        task = None
        if has:
            number, gather, messages, pieces, version, index, length = words[11:_REPLY_WORDS]
            phase = Asked(
                number=number,
                kind=bytes(words[_REPLY_WORDS : _REPLY_WORDS + length]).decode(),
                gather=bool(gather),
                messages=_or_none(messages),
                pieces=pieces,
            )
            task = Task(phase=phase, number=index, version=version)
        return Reply(
            verdict=_VERDICTS[verdict],
            rewind=bool(rewind),
            good=_or_none(good),
            save=_or_none(save),
            certify=certify,
            era=era,
            opening=opened,
            task=task,
            answer=answer,
            over=bool(over),
        )


def _words(words: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.array(words, dtype=np.int64))


def _read(header: Tensor | None) -> list[int]:
    found: list[int] = _there(header).tolist()
    return found


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise MailboxError("a message between server and worker lacks its header")
    return tensor


def _or_less(number: int | None) -> int:
    return -1 if number is None else number


def _or_none(number: int) -> int | None:
    return None if number < 0 else number
