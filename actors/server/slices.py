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


class Slices:
    """Cuts and puts together for one worker.

    Args:
        cut: of w.
        shards: others than the first.
    """

    def __init__(self, cut: Cut, shards: int) -> None:
        self._cut = cut
        self._there: list[dict[int, Tensors]] = [{} for _ in range(shards)]
        """By shard: slices of answers by their serials."""

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
        self._there[shard][told.version] = told.answer

    def lacking(self, told: Reply | News) -> int | None:
        """Return the first shard, from 0, of which a slice has not come; None: they all have."""
        answers = [told.answer]
        if isinstance(told, Reply) and told.certify is not None:
            answers.append(told.certify[1])
        needed = [_serial(answer) for answer in answers if answer]
        for shard, there in enumerate(self._there):
            if any(serial not in there for serial in needed):
                return shard
        return None

    def whole(self, told: Reply | News) -> Reply | News:
        """Return what the first server has told with all its slices; older ones are forgotten."""
        if isinstance(told, News):
            found = replace(told, answer=self._joined(told.answer))
            serial = _serial(told.answer)
            self._there = [{n: t for n, t in each.items() if n > serial} for each in self._there]
            return found
        certify = told.certify
        if certify is not None:
            certify = (certify[0], self._joined(certify[1]))
        if not told.answer:
            return replace(told, certify=certify)
        opening = told.opening
        if opening:
            opening = self._opened(opening, _serial(told.answer))
        answer = self._joined(told.answer)
        self._there = [{} for _ in self._there]
        return replace(told, certify=certify, answer=answer, opening=opening)

    def _joined(self, answer: Tensors) -> Tensors:
        if not answer:
            return ()
        serial = _serial(answer)
        first, *rest = answer[:-1]
        return (_one([first, *(there[serial][0] for there in self._there)]), *rest)

    def _opened(self, opening: Tensors, serial: int) -> Tensors:
        others = [there[serial][1:] for there in self._there]
        return tuple(_one([own, *(each[i] for each in others)]) for i, own in enumerate(opening))


def _serial(answer: Tensors) -> int:
    number = answer[-1]
    if number is None:
        raise MailboxError("an answer of several servers must end with its number")
    return int(number)


def _one(slices: Sequence[Tensor | None]) -> Tensor:
    there = [each for each in slices if each is not None]
    if len(there) < len(slices):
        raise MailboxError("a slice of a vector must be there")
    return torch.cat(there)
