"""Actors that outlive their group, for the next group that asks for the same.

A process that has imported torch and Ray takes seconds of a core to start, and runs that follow one
another (the methods of a comparison, the trials of a search) ask for the same ones each time. What
is kept is room with all its actors; each becomes a new member by
`actors.groups.member.Member.renew`. Whatever a run's own code has changed in such a process beyond
its members, a module's global for instance, the next run finds changed: so nothing is kept unless
somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from typing_extensions import Self

from actors.groups.placement import Post
from actors.groups.within import Room, within

__all__ = ["Kept", "WarmActors", "warm_actors"]

_Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """Room, and the actors on its bundles, in order."""

    room: Room
    handles: Sequence[Any]

    def end(self) -> None:
        """Give the resources back."""
        for handle in self.handles:
            ray.kill(handle)
        self.room.give_back()


class WarmActors:
    """Keeps the actors of groups that ended well, as a context: leaving it ends them.

    Groups that are made within it, by the same thread, hand their actors over and take them from
    it. They hold their resources all the while, and give them back when a group asks for other
    ones that the cluster has no room for.

    Args:
        most: actors that may wait to be taken; the group that has waited longest is ended first.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._kept: list[tuple[_Key, Kept]] = []
        self._tokens: list[Token[WarmActors | None]] = []
        self._around: list[WarmActors | None] = []

    def __enter__(self) -> Self:
        self._around.append(_current.get())
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _current.reset(self._tokens.pop())
        self._around.pop()
        self.clear()

    @property
    def count(self) -> int:
        """The actors that wait to be taken."""
        return sum(len(each.handles) for _, each in self._kept)

    @property
    def resources(self) -> dict[str, float]:
        """What they hold, by Ray's names."""
        held: dict[str, float] = {}
        for (*_, needs), _ in self._kept:
            for _, resources in needs:
                for name, amount in resources:
                    held[name] = held.get(name, 0.0) + amount
        return held

    def take(self, posts: Sequence[Post], strategy: str) -> Kept | None:
        """Hand over actors for `posts`, None if there are none like these."""
        wanted = _key(posts, strategy)
        for position, (key, kept) in enumerate(self._kept):
            if key == wanted:
                del self._kept[position]
                return kept
        return None

    def keep(self, posts: Sequence[Post], strategy: str, kept: Kept) -> None:
        """Take over actors whose group has closed them."""
        self._kept.append((_key(posts, strategy), kept))
        while self.count > self._most:
            _end(*self._kept.pop(0))

    def give_way(self) -> None:
        """End what is kept here, and in the contexts that this one is in."""
        self.clear()
        around = self._around[-1] if self._around else None
        if around is not None and around is not self:
            around.give_way()

    def clear(self) -> None:
        """End what is kept."""
        entries, self._kept = self._kept, []
        for key, kept in entries:
            _end(key, kept)


_current: ContextVar[WarmActors | None] = ContextVar("warm_actors", default=None)


def warm_actors() -> WarmActors | None:
    """Return what keeps actors for groups that are made here and now; None: nothing does."""
    return _current.get()


def _end(key: _Key, kept: Kept) -> None:
    """End actors, unless the session that they lived in has ended already."""
    if ray.is_initialized() and key[0] == _session():
        kept.end()


def _session() -> str:
    context = ray.get_runtime_context()
    return f"{context.gcs_address} {context.get_job_id()}"


def _key(posts: Sequence[Post], strategy: str) -> _Key:
    needs = tuple((post.actor, tuple(sorted(post.resources.items()))) for post in posts)
    given = within()
    # Those that live within another's placement group are of no use outside of it.
    return (_session(), strategy if given is None else given.placement_group, needs)
