"""The worker's end of several shards of a server: what it sends is cut, what it hears put together.

    push, proof ──▶ slice 0 with all numbers ──▶ the first server
                ──▶ slice s                  ──▶ shard s
    reply, news ◀── slice 0 with all numbers ◀── the first server
                ◀── slice s, by its serial   ◀── shard s

A reply is heard when all its slices are there. News that lack one are not heard: newer ones will.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from actors.errors import MailboxError
from actors.server.exchange import Part
from actors.server.messages import News, Proof, Push, Reply
from actors.server.protocols import Cut
from actors.units import Tensors

__all__ = ["Slices"]

_Key = tuple[bool, int]
"""Of a slice: whether it is of what a certificate is made at, and the number of the answer."""


class Slices:
    """Cuts and puts together for one worker.

    Args:
        cut: of w.
        shards: others than the first.
    """

    def __init__(self, cut: Cut, shards: int) -> None:
        self._cut = cut
        self._there: list[dict[_Key, Tensors]] = [{} for _ in range(shards)]
        """By shard."""

    def cut(self, what: Push | Proof) -> Sequence[Push | Proof]:
        """Return a push or a proof as each shard gets it; a proof's values are the first's."""
        if isinstance(what, Push):
            return [replace(what, tensors=each) for each in self._cut.message(what.tensors)]
        part = what.certificate
        vectors = {name: self._cut.vector(vector) for name, vector in part.tensors.items()}
        found = []
        for shard in range(len(self._there) + 1):
            values = {} if shard else part.values
            tensors = {name: slices[shard] for name, slices in vectors.items()}
            found.append(
                Proof(number=what.number, certificate=Part(values=values, tensors=tensors))
            )
        return found

    def heard(self, shard: int, told: Reply | News) -> None:
        """A slice came of another shard, from 0.

        Raises:
            MailboxError: it is none.
        """
        if not isinstance(told, News):
            raise MailboxError("a shard that is not the first tells slices only")
        vector, *opening = told.answer
        # The next one of this shard may come as changes, which are written to this.
        kept = None if vector is None else vector.clone()
        self._there[shard][bool(told.era), told.version] = (kept, *opening)

    def lacking(self, told: Reply | News) -> int | None:
        """Return the first shard, from 0, of which a slice has not come; None: they all have."""
        needed = [_key(told.answer)] if told.answer else []
        if isinstance(told, Reply) and told.certify is not None:
            needed.append(_key(told.certify[1], snapshot=True))
        for shard, there in enumerate(self._there):
            if any(key not in there for key in needed):
                return shard
        return None

    def whole(self, told: Reply | News) -> Reply | News:
        """Return what the first server has told with all its slices; older ones are forgotten."""
        if isinstance(told, News):
            key = _key(told.answer)
            found = replace(told, answer=self._joined(told.answer, key))
            for there in self._there:
                for old in [each for each in there if not each[0] and each <= key]:
                    del there[old]
            return found
        certify = told.certify
        if certify is not None:
            number, answer, at = certify
            certify = (number, self._joined(answer, _key(answer, snapshot=True)), at)
        if not told.answer:
            return replace(told, certify=certify)
        key, opening = _key(told.answer), told.opening
        if opening:
            opening = self._opened(opening, key)
        answer = self._joined(told.answer, key)
        self._there = [{} for _ in self._there]
        return replace(told, certify=certify, answer=answer, opening=opening)

    def _joined(self, answer: Tensors, key: _Key) -> Tensors:
        first, *rest = answer[:-1]
        return (_one([first, *(there[key][0] for there in self._there)]), *rest)

    def _opened(self, opening: Tensors, key: _Key) -> Tensors:
        others = [there[key][1:] for there in self._there]
        return tuple(_one([own, *(each[i] for each in others)]) for i, own in enumerate(opening))


def _key(answer: Tensors, *, snapshot: bool = False) -> _Key:
    number = answer[-1]
    if number is None:
        raise MailboxError("an answer of several servers must end with its number")
    return snapshot, int(number)


def _one(slices: Sequence[Tensor | None]) -> Tensor:
    there = [each for each in slices if each is not None]
    if len(there) < len(slices):
        raise MailboxError("a slice of a vector must be there")
    return torch.cat(there)
