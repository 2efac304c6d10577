"""Opening links between actors: receivers listen, senders connect, receivers greet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from actors.groups.member import Home
from actors.wires.carrier import CarrierKind
from actors.wires.link import CarrierChoice, Link, WireKind, carrier_of
from actors.wires.process_groups import LOOPBACK

__all__ = ["Opening", "carriers"]

_BUSY_HELLO_S = 5.0
"""A member that runs does not wait longer for one that may be dead already."""


def carriers(
    links: Sequence[Link], homes: Mapping[int, Home], wire: WireKind, asked: CarrierChoice
) -> list[CarrierKind]:
    """Return what carries the tensors of each link.

    Raises:
        MechanismError: what is asked for cannot serve two members that live where they do.
    """
    places = {index: (home.node_id, home.gpu) for index, home in homes.items()}
    if wire == "ray" and asked == "auto":
        asked = "inline"
    return [carrier_of(link, places[link.source], places[link.target], asked) for link in links]


class Opening:
    """Opens links between the members of a group.

    Args:
        handles: of the actors, by their numbers.
        homes: where they live.
        ask: waits for calls and returns their answers, see `actors.groups.group.Group.ask`.
    """

    def __init__(
        self,
        handles: Mapping[int, Any],
        homes: Mapping[int, Home],
        ask: Callable[[Iterable[Any]], list[Any]],
    ) -> None:
        self._handles = handles
        self._homes = homes
        self._ask = ask

    def open(
        self,
        links: Sequence[Link],
        kinds: Sequence[CarrierKind],
        wire: WireKind,
        busy: Collection[int],
    ) -> None:
        """Open `links`, whose tensors `kinds` carry; see `actors.groups.group.Group.wire`."""
        self._join(links, kinds)
        addresses = self._ask(
            self._call(
                busy,
                link.target,
                "listen",
                *(link, wire, self._transport(link), self._handles[link.source]),
                *(self._homes[link.source].public_key, kind),
            )
            for link, kind in zip(links, kinds, strict=True)
        )
        self._ask(
            self._call(
                busy, link.source, "connect", link, address, self._handles[link.target], kind
            )
            for link, kind, address in zip(links, kinds, addresses, strict=True)
            if link.source != link.target
        )
        self._ask(
            self._call(busy, index, "accept", *([_BUSY_HELLO_S] if index in busy else []))
            for index in sorted({link.target for link in links})
        )

    def _join(self, links: Sequence[Link], kinds: Sequence[CarrierKind]) -> None:
        """Let all members meet whose links torch.distributed carries."""
        carried = [link for link, kind in zip(links, kinds, strict=True) if kind == "distributed"]
        if not carried:
            return
        first = min(self._homes)
        one_node = len({home.node_id for home in self._homes.values()}) == 1
        host = LOOPBACK if one_node else self._homes[first].host
        (place,) = self._ask([self._handles[first].open_store.remote(host)])
        members = [self._handles[index] for index in sorted(self._handles)]
        self._ask(each.join.remote(place, len(members), carried) for each in members)

    def _call(self, busy: Collection[int], index: int, method: str, *arguments: Any) -> Any:
        handle = self._handles[index]
        if index in busy:
            return handle.meanwhile.remote(method, *arguments)
        return getattr(handle, method).remote(*arguments)

    def _transport(self, link: Link) -> str:
        source, target = self._homes[link.source], self._homes[link.target]
        return "ipc" if source.node_id == target.node_id else "tcp"
