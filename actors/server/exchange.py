"""What server and workers tell each other, as messages: whole numbers, and tensors.

    push    words, tensors                worker k ── pushes ──▶ server
    proof   names, values, tensors
    reply   words, certificate's answer, opening, answer
    news    words, answer                 server ── answers ──▶ worker k

No pickle. An answer goes whole, or as what has changed of it since the link's last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.errors import MailboxError
from actors.server.changes import ChangesIn, ChangesOut, Trail, sent_tensors
from actors.server.messages import News, Proof, Push, Reply, Verdict
from actors.server.protocols import Task
from actors.units import Tensors
from actors.wires.link import Link
from actors.wires.messages import Kind, Message

__all__ = ["SERVER", "Asked", "Part", "ServerSide", "WorkerSide", "server_links"]

SERVER = 0
"""Number of the server among the members of its group; worker k is member k + 1."""
_VERDICTS: tuple[Verdict, ...] = ("none", "commit", "discard")
_WORD = 10
"""Whole numbers of a reply without a task."""
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


@dataclass(slots=True, kw_only=True)
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

    def packed(self, told: Reply | News, trail: Trail | None = None) -> Message:
        """Return the message that says this; messages must be sent in the order of packing.

        Args:
            told: what to say.
            trail: of the updates of what the answers are; None: answers go whole.
        """
        changes = self._changes
        if isinstance(told, News):
            how, tensors = changes.pack(told.answer, told.at, trail)
            return Message(Kind.NEWS, told.version, tensors, words=(told.era, how))
        certificate, proving = -1, 0
        certified: Tensors = ()
        if told.certify is not None:
            certificate, proven, at = told.certify
            proving, certified = changes.pack(proven, at, trail)
        opening = told.opening or ()
        how, tensors = changes.pack(told.answer, told.at, trail)
        words = (
            _VERDICTS.index(told.verdict),
            told.rewind,
            _or_less(told.good),
            _or_less(told.save),
            certificate,
            proving,
            told.era,
            -1 if told.opening is None else len(opening),
            how,
            told.over,
        )
        if certified or opening:
            tensors = (*certified, *opening, *tensors)
        task = told.task
        if task is None:
            return Message(Kind.WORD, 0, tensors, words=words)
        phase = task.phase
        asked = (
            phase.number,
            phase.gather,
            _or_less(phase.messages),
            phase.pieces,
            task.version,
            *phase.kind.encode(),
        )
        return Message(Kind.REPLY, task.number, tensors, words=words + asked)

    def unpacked(self, message: Message) -> Push | Proof:
        """Return what a worker has told.

        Raises:
            MailboxError: it is not a worker's message.
        """
        if message.kind is Kind.PUSH:
            era, phase, samples, waited = message.words
            return Push(
                era=era,
                phase=phase,
                number=message.index,
                tensors=message.tensors,
                samples=samples,
                waited_s=waited / _MICRO,
            )
        if message.kind is not Kind.PROOF:
            raise MailboxError(f"a server takes pushes and proofs, but got a {message.kind.name}")
        listed, figures, *rest = (_there(each) for each in message.tensors)
        names = json.loads(bytes(listed.tolist()))
        values = dict(zip(names[0], figures.tolist(), strict=True))
        tensors = dict(zip(names[1], rest, strict=True))
        return Proof(number=message.index, certificate=Part(values=values, tensors=tensors))


class WorkerSide:
    """A worker's end of its links."""

    def __init__(self) -> None:
        self._changes = ChangesIn()

    def packed(self, told: Push | Proof) -> Message:
        """Return the message that says this."""
        if isinstance(told, Push):
            words = (told.era, told.phase, told.samples, round(_MICRO * told.waited_s))
            return Message(Kind.PUSH, told.number, told.tensors, words=words)
        part = told.certificate
        names = json.dumps([list(part.values), list(part.tensors)]).encode()
        tensors = (
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
        words = message.words
        if message.kind is Kind.NEWS:
            era, how = words
            answer = self._changes.unpack(how, message.tensors)
            return News(era=era, version=message.index, answer=answer)
        if message.kind not in (Kind.REPLY, Kind.WORD):
            raise MailboxError(f"a worker takes replies and news, but got a {message.kind.name}")
        verdict, rewind, good, save, certificate, proving, era, opening, how, over = words[:_WORD]
        sent = message.tensors
        certify = opened = task = None
        if certificate >= 0:
            count = sent_tensors(proving)
            certify = (certificate, self._changes.unpack(proving, sent[:count], keep=True), 0)
            sent = sent[count:]
        if opening >= 0:
            opened, sent = sent[:opening], sent[opening:]
        answer = self._changes.unpack(how, sent)
        if message.kind is Kind.REPLY:
            number, gather, messages, pieces, version, *kind = words[_WORD:]
            phase = Asked(
                number=number,
                kind=bytes(kind).decode(),
                gather=bool(gather),
                messages=_or_none(messages),
                pieces=pieces,
            )
            task = Task(phase=phase, number=message.index, version=version)
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


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise MailboxError("a message between server and worker lacks one of its tensors")
    return tensor


def _or_less(number: int | None) -> int:
    return -1 if number is None else number


def _or_none(number: int) -> int | None:
    return None if number < 0 else number
