"""Who places actors, wires them, watches them and takes them down, whatever happens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from typing_extensions import Self

from actors.errors import ActorLostError, PlacementError
from actors.groups.member import Home
from actors.groups.opening import Opening, carriers
from actors.groups.placement import Post, place, start
from actors.groups.warm import Kept, warm_actors
from actors.groups.within import Room
from actors.wires.carrier import CarrierKind
from actors.wires.link import CarrierChoice, Link, WireKind

__all__ = ["Group"]

_NOTICE_S = 5.0
"""Time that Ray takes at most, as a rule, to notice that a process is gone."""
_CLOSE_S = 3.0


@dataclass(slots=True)
class _Placed:
    """One member that is there."""

    post: Post
    room: Room
    at: int
    handle: Any
    home: Home


class Group:
    """Actors in placement groups, of its own or all in one that is there (see
    `actors.groups.within`), as a context: leaving it leaves nothing behind.

    Args:
        posts: of the members that are there from the beginning, by their numbers.
        wait_s: how long to wait for the cluster to have the resources.
        strategy: of the placement groups.
        noun: what a member is called in errors.

    Raises:
        PlacementError: the resources are not there in time; the message says what is missing.
    """

    def __init__(
        self, posts: Mapping[int, Post], wait_s: float, strategy: str = "PACK", noun: str = "stage"
    ) -> None:
        self._posts = posts
        self._wait_s = wait_s
        self._strategy = strategy
        self._noun = noun
        self._placed: dict[int, _Placed] = {}
        self._rooms: list[Room] = []
        self._renewable = True

    def __enter__(self) -> Self:
        try:
            self.add(self._posts)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._renewable:
            self._hand_over()
        self.close()

    @property
    def gpus(self) -> bool:
        """Whether the members have (a share of) a GPU."""
        return any(each.resources.get("GPU") for each in self._posts.values())

    @property
    def members(self) -> list[int]:
        """The numbers of those that are there, ascending."""
        return sorted(self._placed)

    @property
    def handles(self) -> list[Any]:
        """The actors, by ascending number."""
        return [self._placed[index].handle for index in self.members]

    @property
    def homes(self) -> list[Home]:
        """Where they live, by ascending number."""
        return [self._placed[index].home for index in self.members]

    def handle(self, index: int) -> Any:
        """Return one actor."""
        return self._placed[index].handle

    # ------------------------------------------------------------------ members

    def add(
        self, posts: Mapping[int, Post], wait_s: float | None = None, *, apart: bool = False
    ) -> None:
        """Place more members, all or none.

        Args:
            posts: of the members, by their numbers.
            wait_s: how long to wait for the resources; None: as long as for the first ones.
            apart: each has a placement group of its own, which is given back when it goes.

        Raises:
            PlacementError: the resources are not there in time.
        """
        wait_s = self._wait_s if wait_s is None else wait_s
        shares = [[each] for each in posts.items()] if apart else [list(posts.items())]
        try:
            for share in shares:
                self._place(share, wait_s)
        except PlacementError:
            for index in posts:
                if index in self._placed:
                    self.remove(index)
            raise
        homes = self.ask(self.handle(index).home.remote() for index in posts)
        for index, home in zip(posts, homes, strict=True):
            self._placed[index].home = home

    def _place(self, share: Sequence[tuple[int, Post]], wait_s: float) -> None:
        posts = [post for _, post in share]
        kept = self._taken_over(posts) or self._started(posts, wait_s)
        self._rooms.append(kept.room)
        for at, (index, post) in enumerate(share):
            self._placed[index] = _Placed(post, kept.room, at, kept.handles[at], _NOWHERE)

    def restart(self, index: int) -> Any:
        """Start a member again in the place of one that is lost; return the call that tells its
        home, for `settle`. The cluster may have to find a place for it first.
        """
        placed = self._placed[index]
        ray.kill(placed.handle)
        placed.handle = start(placed.post, placed.room, placed.at)
        return placed.handle.home.remote()

    def settle(self, index: int, home: Any) -> None:
        """Take note of where a member lives that was started again.

        Raises:
            ActorLostError: it is lost already.
        """
        (self._placed[index].home,) = self.ask([home])

    def remove(self, index: int) -> None:
        """End one member; room that has none left is given back."""
        placed = self._placed.pop(index)
        self._end([placed.handle])
        if all(each.room is not placed.room for each in self._placed.values()):
            self._rooms.remove(placed.room)
            placed.room.give_back()

    # ------------------------------------------------------------------ wiring

    def wire(
        self,
        links: Sequence[Link],
        wire: WireKind,
        carrier: CarrierChoice = "auto",
        busy: Collection[int] = (),
    ) -> list[CarrierKind]:
        """Open links: receivers listen, senders connect, receivers greet.

        Args:
            links: between members.
            wire: of headers, markers and credits.
            carrier: of the tensors; "auto": by where the ends of each link live.
            busy: members that run: they open their ends between two steps, see
                `actors.groups.errands`.

        Returns:
            What carries the tensors of each link.

        Raises:
            MechanismError: the carrier cannot serve two members that live where they do.
        """
        homes = {index: each.home for index, each in self._placed.items()}
        kinds = carriers(links, homes, wire, carrier)
        # Ray and torch.distributed may still have something of this group under way at its end.
        self._renewable = self._renewable and wire == "zmq" and "distributed" not in kinds
        handles = {index: each.handle for index, each in self._placed.items()}
        Opening(handles, homes, self.ask).open(links, kinds, wire, busy)
        return kinds

    def ask(self, calls: Iterable[Any]) -> list[Any]:
        """Wait for calls of members; raise what the first failed one raised.

        Raises:
            ActorLostError: an actor died.
        """
        waiting = list(calls)
        index = {call: position for position, call in enumerate(waiting)}
        answers: list[Any] = [None] * len(waiting)
        while waiting:
            done, waiting = ray.wait(waiting)
            for call in done:
                answers[index[call]] = self._answer(call)
        return answers

    def check_alive(self) -> None:
        """Raise that a member died if one did: its neighbours may miss the link to it first.

        Raises:
            ActorLostError: an actor died.
        """
        pings = [handle.alive.remote() for handle in self.handles]
        done, _ = ray.wait(pings, num_returns=len(pings), timeout=_NOTICE_S)
        self.ask(done)

    # ------------------------------------------------------------------ end

    def close(self) -> None:
        """End every actor and give the resources back. Never raises, may be called twice."""
        placed, self._placed = self._placed, {}
        rooms, self._rooms = self._rooms, []
        if ray.is_initialized():
            self._end([each.handle for each in placed.values()])
            for each in rooms:
                each.give_back()

    # ------------------------------------------------------------------ inside

    def _started(self, posts: Sequence[Post], wait_s: float) -> Kept:
        warm = warm_actors()
        make_room = None if warm is None else warm.give_way
        room = place(posts, self._strategy, wait_s, self._noun, make_room)
        return Kept(room, [start(post, room, at) for at, post in enumerate(posts)])

    def _taken_over(self, posts: Sequence[Post]) -> Kept | None:
        """Return actors that another group has left, as new members; None: there are none."""
        warm = warm_actors()
        kept = None if warm is None else warm.take(posts, self._strategy)
        if kept is None:
            return None
        try:
            pairs = zip(kept.handles, posts, strict=True)
            self.ask(handle.renew.remote(*post.arguments) for handle, post in pairs)
        except ActorLostError:
            kept.end()
            return None
        return kept

    def _hand_over(self) -> None:
        """Leave the actors of every room that has all of its own to who wants them."""
        warm = warm_actors()
        if warm is None or not ray.is_initialized():
            return
        for room in list(self._rooms):
            mine = {k: each for k, each in self._placed.items() if each.room is room}
            members = sorted(mine.values(), key=lambda each: each.at)
            handles = [each.handle for each in members]
            if len(members) == len(room.bundles) and self._closed(handles):
                posts = [each.post for each in members]
                warm.keep(posts, self._strategy, Kept(room, handles))
                self._rooms.remove(room)
                self._placed = {k: v for k, v in self._placed.items() if k not in mine}

    def _end(self, handles: Sequence[Any]) -> None:
        # One that is stuck in a long operation is killed all the same.
        self._closed(handles)
        for handle in handles:
            ray.kill(handle)

    @staticmethod
    def _closed(handles: Sequence[Any]) -> bool:
        """Let actors stop and close their boxes; tell whether all have in time."""
        calls = [handle.stop.remote() for handle in handles]
        calls += [handle.close.remote() for handle in handles]
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_S) if calls else ([], [])
        try:
            ray.get(done)
        except RayError:
            return False
        return len(done) == len(calls)

    def _answer(self, call: Any) -> Any:
        try:
            return ray.get(call)
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from None
        except (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError) as error:
            raise ActorLostError(
                f"the process of one {self._noun} died: {_first_line(error)}"
            ) from error


_NOWHERE = Home("", "", 0, b"")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
