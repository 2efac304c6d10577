"""What the first server tells the other shards of w, and what they tell it.

    log     the calls of the rule, in their order            server ──▶ shard
    acks    what has come from workers, sums of certificates server ◀── shard

A shard is a rule that holds a range of the coordinates of w. It makes the calls that the first
server's rule has got, in their order, on its own slices of the messages: so all shards are at one
state, one after the other, and there is one order, one staleness, one certificate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import torch

from actors.errors import MailboxError
from actors.server.exchange import SERVER, server_links
from actors.server.protocols import Certificate, ServerRule
from actors.units import Tensors
from actors.wires.link import Link
from actors.wires.messages import Kind, Message

__all__ = [
    "Ack",
    "Call",
    "Entry",
    "SliceRule",
    "entries_of",
    "links_of",
    "message_of",
    "shard_links",
    "shard_member",
]


class SliceRule(ServerRule, Protocol):
    """A server's rule that can hold a part of w: everything it does is done by coordinates, but
    for the figures of a certificate, which are made of sums over all of them.
    """

    def measure(self, parts: Mapping[int, Certificate], answer: Tensors) -> dict[str, float]:
        """Return a certificate's sums over the coordinates that are here, by name."""
        ...

    def figures(
        self, parts: Mapping[int, Certificate], measured: Mapping[str, float]
    ) -> dict[str, float]:
        """Return a certificate's figures of the sums over all coordinates."""
        ...

    def accept(self) -> None:
        """The certificate of now is good, as `judge` has found where that is asked."""
        ...


class Call(IntEnum):
    """A call of the first server's rule, or what the shards are to do besides."""

    APPLY = 0
    """(worker, number, staleness)"""
    CLOSE_PHASE = 1
    OPENING = 2
    """It goes with the answer that follows."""
    ANSWER = 3
    """(worker)"""
    NEWS = 4
    """(worker): an answer that need not arrive."""
    SNAPSHOT = 5
    """The answer that a certificate is made at."""
    MARK = 6
    """(worker, number): it is told the snapshot."""
    MEASURE = 7
    """(number)"""
    ACCEPT = 8
    REWIND = 9
    """(number, or -1)"""
    KEPT = 10
    """(worker, step)"""
    TAKE_BACK = 11
    """(worker, step, or -1)"""
    SAVE = 12
    """(step)"""
    JOIN = 13
    """(worker): all that follows is for a new process."""
    OVER = 14


class Ack(IntEnum):
    """What a shard tells the first server."""

    PUSH = 0
    """(worker, number): its slice is there."""
    PROOF = 1
    """(worker, number): its slice is there."""
    JOIN = 2
    """(worker): what was told of it before is of a process that is gone."""


class Entry(NamedTuple):
    """One call, or one ack."""

    what: int
    a: int = 0
    b: int = 0
    c: int = 0


def message_of(kind: Kind, entries: Iterable[Entry]) -> Message:
    """Return the message that carries a piece of the log, or acks."""
    return Message(kind, 0, (torch.from_numpy(np.array(list(entries), dtype=np.int64)),))


def entries_of(message: Message) -> list[Entry]:
    """Return what a message of `message_of` carries.

    Raises:
        MailboxError: it is none.
    """
    (words,) = message.tensors
    if message.kind not in (Kind.LOG, Kind.ACKS) or words is None:
        raise MailboxError(f"a log or acks were expected, but got a {message.kind.name}")
    return [Entry(*each) for each in words.tolist()]


# ---------------------------------------------------------------------- links


def shard_member(shard: int) -> int:
    """Return the number of a shard's actor among the members of its group, -1, -2, …; the first
    shard is the server itself.
    """
    return -shard if shard else SERVER


def shard_links(shard: int) -> list[Link]:
    """Return the links between the first server and another shard."""
    member = shard_member(shard)
    return [
        Link(box="log", source=SERVER, target=member, capacity=16, inline=True),
        Link(box="acks", source=member, target=SERVER, capacity=16, inline=True),
    ]


def links_of(worker: int, servers: int = 1) -> list[Link]:
    """Return the links between a worker and all shards of the server.

    To each other shard go the slices of its pushes and proofs, and from there those of answers: up
    to two for a reply, and news as long as a credit is left for these.
    """
    links = server_links(worker)
    for shard in range(1, servers):
        member = shard_member(shard)
        links += [
            Link(box="pushes", source=worker + 1, target=member, capacity=2, inline=True),
            Link(box="answers", source=member, target=worker + 1, capacity=4, inline=True),
        ]
    return links
