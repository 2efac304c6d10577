"""The resources that a group's actors live on: of a placement group of their own, or of another's.

A group makes a placement group and removes it. Within one that somebody else has made, for a whole
trial of a search for instance, groups take its bundles and give them back, and nothing here
removes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType

from ray.util.placement_group import PlacementGroup
from typing_extensions import Self

from actors.errors import PlacementError

__all__ = ["Needs", "Room", "Within", "within"]

Needs = Sequence[Mapping[str, float]]
"""What each actor needs, by Ray's names."""

_taken: dict[PlacementGroup, set[int]] = {}
"""The bundles of other's placement groups that this process has actors on."""
_lock = threading.Lock()
_TINY = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """Bundles for the actors of a group, one each, until they are given back.

    Args:
        group: that they are of.
        bundles: their places in it, in the order of the actors.
        give_back: to whoever they are from.
    """

    group: PlacementGroup
    bundles: Sequence[int]
    give_back: Callable[[], None]


class Within:
    """Lets groups live in a placement group that is there, as a context.

    Groups that are made within it, by the same thread, take its free bundles in their order: the
    first group's actor i bundle i, if it is as large as the actor needs. Actors that
    `actors.groups.warm.WarmActors` keeps stay on theirs, also for another context of the same
    placement group. The placement group is never removed.

    Args:
        placement_group: of a bundle for every actor.
    """

    def __init__(self, placement_group: PlacementGroup) -> None:
        self.placement_group = placement_group
        self._tokens: list[Token[Within | None]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _current.reset(self._tokens.pop())

    def take(
        self,
        needs: Needs,
        wait_s: float,
        noun: str,
        make_room: Callable[[], None] | None = None,
    ) -> Room:
        """Take a bundle for each of the actors, all or none.

        Args:
            needs: of the actors.
            wait_s: how long to wait for the placement group to be made.
            noun: what an actor is called in errors.
            make_room: called if too few bundles are free: it may give others back.

        Raises:
            PlacementError: it has too few bundles, too small ones, or has not been made in time.
        """
        if not self.placement_group.wait(wait_s):
            raise PlacementError(
                f"the placement group that a run is to live in must be made within {wait_s:g} s, "
                "but it is not: wait longer, or give the cluster room for it"
            )
        room = self._free(needs)
        if room is None and make_room is not None:
            make_room()
            room = self._free(needs)
        if room is None:
            raise PlacementError(self._shortage(needs, noun))
        return room

    def _free(self, needs: Needs) -> Room | None:
        """Return room on free bundles, each for the first actor that it is large enough for."""
        group = self.placement_group
        with _lock:
            taken = _taken.setdefault(group, set())
            found: list[int] = []
            for each in needs:
                for bundle, has in enumerate(group.bundle_specs):
                    if bundle not in taken and bundle not in found and _holds(has, each):
                        found.append(bundle)
                        break
                else:
                    return None
            taken.update(found)

        mine = set(found)

        def give_back() -> None:
            with _lock:
                taken.difference_update(mine)
                mine.clear()
                if not taken:
                    _taken.pop(group, None)

        return Room(group, found, give_back)

    def _shortage(self, needs: Needs, noun: str) -> str:
        bundles = self.placement_group.bundle_specs
        free = set(range(len(bundles))) - _taken.get(self.placement_group, set())
        return (
            f"the placement group that a run is to live in must have a free bundle for each of its "
            f"{len(needs)} {noun}s, the largest of which needs {_largest(needs)}, but of its "
            f"{len(bundles)} bundles {len(free)} are free, the largest of which has "
            f"{_largest([bundles[each] for each in free])}: give it more or larger ones, or the "
            "run less"
        )


_current: ContextVar[Within | None] = ContextVar("within", default=None)


def within() -> Within | None:
    """Return the placement group in which groups are made here and now; None: each in its own."""
    return _current.get()


def _holds(bundle: Mapping[str, float], needs: Mapping[str, float]) -> bool:
    return all(amount <= bundle.get(name, 0.0) + _TINY for name, amount in needs.items())


def _largest(bundles: Needs) -> str:
    names = sorted({name for each in bundles for name in each})
    most = {name: max(each.get(name, 0.0) for each in bundles) for name in names}
    return ", ".join(f"{amount:g} {name}" for name, amount in most.items()) or "nothing"
