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
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.placement_group import PlacementGroup, remove_placement_group
from typing_extensions import Self

from actors.errors import ActorLostError
from actors.groups.member import Home
from actors.groups.placement import Post, place, start
from actors.wires.carrier import CarrierKind
from actors.wires.link import CarrierChoice, Link, WireKind, carrier_of
from actors.wires.process_groups import LOOPBACK

__all__ = ["Group"]

_NOTICE_S = 5.0
"""Time that Ray takes at most, as a rule, to notice that a process is gone."""
_CLOSE_S = 3.0
_BUSY_HELLO_S = 5.0
"""A member that runs does not wait longer for one that may be dead already."""


@dataclass(slots=True)
class _Placed:
    """One member that is there."""

    post: Post
    bundles: PlacementGroup
    bundle: int
    handle: Any
    home: Home


class Group:
    """Actors in placement groups, as a context: leaving it leaves nothing behind.

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
        self._bundles: list[PlacementGroup] = []

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
        self, posts: Mapping[int, Post], wait_s: float | None = None, strategy: str | None = None
    ) -> None:
        """Place more members, all or none.

        Args:
            posts: of the members, by their numbers.
            wait_s: how long to wait for the resources; None: as for the first.
            strategy: of their placement group; None: that of the first.

        Raises:
            PlacementError: the resources are not there in time.
        """
        wait_s = self._wait_s if wait_s is None else wait_s
        bundles = place(list(posts.values()), strategy or self._strategy, wait_s, self._noun)
        self._bundles.append(bundles)
        for bundle, (index, post) in enumerate(posts.items()):
            handle = start(post, bundles, bundle)
            self._placed[index] = _Placed(post, bundles, bundle, handle, _NOWHERE)
        homes = self.ask(self.handle(index).home.remote() for index in posts)
        for index, home in zip(posts, homes, strict=True):
            self._placed[index].home = home

    def restart(self, index: int) -> Any:
        """Start a member again in the place of one that is lost; return the call that tells its
        home, for `settle`. The cluster may have to find a place for it first.
        """
        placed = self._placed[index]
        ray.kill(placed.handle)
        placed.handle = start(placed.post, placed.bundles, placed.bundle)
        return placed.handle.home.remote()

    def settle(self, index: int, home: Any) -> None:
        """Take note of where a member lives that was started again.

        Raises:
            ActorLostError: it is lost already.
        """
        (self._placed[index].home,) = self.ask([home])

    def remove(self, index: int) -> None:
        """End one member; a placement group that has none left is given back."""
        placed = self._placed.pop(index)
        self._end([placed.handle])
        if all(each.bundles is not placed.bundles for each in self._placed.values()):
            self._bundles.remove(placed.bundles)
            remove_placement_group(placed.bundles)

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
        kinds = self._carriers(links, wire, carrier)
        carried = [link for link, kind in zip(links, kinds, strict=True) if kind == "distributed"]
        if carried:
            one_node = len({home.node_id for home in self.homes}) == 1
            host = LOOPBACK if one_node else self.homes[0].host
            first, *_ = self.handles
            (place,) = self.ask([first.open_store.remote(host)])
            self.ask(each.join.remote(place, len(self._placed), carried) for each in self.handles)

        def call(index: int, method: str, *arguments: Any) -> Any:
            handle = self.handle(index)
            if index in busy:
                return handle.meanwhile.remote(method, *arguments)
            return getattr(handle, method).remote(*arguments)

        addresses = self.ask(
            call(
                link.target,
                "listen",
                link,
                wire,
                self._transport(link),
                self.handle(link.source),
                self._placed[link.source].home.public_key,
                kind,
            )
            for link, kind in zip(links, kinds, strict=True)
        )
        self.ask(
            call(link.source, "connect", link, address, self.handle(link.target), kind)
            for link, kind, address in zip(links, kinds, addresses, strict=True)
            if link.source != link.target
        )
        self.ask(
            call(index, "accept", *([_BUSY_HELLO_S] if index in busy else []))
            for index in sorted({link.target for link in links})
        )
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
        bundles, self._bundles = self._bundles, []
        if ray.is_initialized():
            self._end([each.handle for each in placed.values()])
            for each in bundles:
                remove_placement_group(each)

    # ------------------------------------------------------------------ inside

    @staticmethod
    def _end(handles: Sequence[Any]) -> None:
        calls = [handle.stop.remote() for handle in handles]
        calls += [handle.close.remote() for handle in handles]
        if calls:
            # One that is stuck in a long operation is killed all the same.
            ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_S)
        for handle in handles:
            ray.kill(handle)

    def _answer(self, call: Any) -> Any:
        try:
            return ray.get(call)
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from None
        except (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError) as error:
            raise ActorLostError(f"a {self._noun}'s process died: {_first_line(error)}") from error

    def _transport(self, link: Link) -> str:
        source, target = self._placed[link.source].home, self._placed[link.target].home
        return "ipc" if source.node_id == target.node_id else "tcp"

    def _carriers(
        self, links: Sequence[Link], wire: WireKind, asked: CarrierChoice
    ) -> list[CarrierKind]:
        places = {k: (each.home.node_id, each.home.gpu) for k, each in self._placed.items()}
        if wire == "ray" and asked == "auto":
            asked = "inline"
        return [carrier_of(link, places[link.source], places[link.target], asked) for link in links]


_NOWHERE = Home("", "", 0, b"")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
