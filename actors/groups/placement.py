"""Where actors live: bundles of the cluster's resources, and actors on them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.errors import PlacementError
from actors.groups.within import Room, within

__all__ = ["TELL_S", "Post", "missing", "place", "shortage", "start", "total"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """What one member of a group is.

    Args:
        actor: its Ray actor class, with the methods of `actors.groups.member.Member`.
        arguments: of its constructor.
        resources: that it needs, by Ray's names.
    """

    actor: Any
    arguments: tuple[Any, ...]
    resources: Mapping[str, float]


_LOG = logging.getLogger(__name__)
TELL_S = 5.0
"""Time after which a user is told what is waited for: nodes may have to come, or others to end."""
_ROOM_S = 1.0
"""Time that a cluster with room for a placement group takes at most, as a rule, to make it."""


def place(
    posts: Sequence[Post],
    strategy: str,
    wait_s: float,
    noun: str,
    make_room: Callable[[], None] | None = None,
) -> Room:
    """Take a bundle of resources for each, all or none: of the placement group that this is called
    within, see `actors.groups.within`, or of a new one.

    Args:
        posts: of the actors that are to live there.
        strategy: of a new placement group.
        wait_s: how long to wait for the cluster to have the resources.
        noun: what one of them is called in errors.
        make_room: called if the resources are not there at once: it may give others back.

    Raises:
        PlacementError: the resources are not there in time.
    """
    needed = [dict(post.resources) for post in posts]
    given = within()
    if given is not None:
        return given.take(needed, wait_s, noun, make_room)
    group = placement_group(needed, strategy=strategy)
    try:
        ready = group.ready()
        if make_room is not None and not ray.wait([ready], timeout=min(_ROOM_S, wait_s))[0]:
            make_room()
        if wait_s > TELL_S and not ray.wait([ready], timeout=TELL_S)[0]:
            what = f"{len(needed)} {noun}s' resources ({missing(needed)})"
            _LOG.warning("waiting up to %g s for %s", wait_s, what)
        ray.get(ready, timeout=wait_s)
    except BaseException as error:
        remove_placement_group(group)
        if isinstance(error, GetTimeoutError):
            raise PlacementError(shortage(needed, noun, wait_s)) from None
        raise
    return Room(group, range(len(needed)), functools.partial(remove_placement_group, group))


def start(post: Post, room: Room, at: int) -> Any:
    """Start one actor on a bundle of its own, the one `at` that place among those of `room`."""
    needs = post.resources
    other = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    return post.actor.options(
        num_cpus=needs.get("CPU", 0),
        num_gpus=needs.get("GPU", 0),
        resources=other,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            room.group, placement_group_bundle_index=room.bundles[at]
        ),
    ).remote(*post.arguments)


def shortage(needs: Sequence[Mapping[str, float]], noun: str, wait_s: float) -> str:
    """Return what to say of resources that were not there in time.

    Args:
        needs: of the actors.
        noun: what one of them is called.
        wait_s: how long they were waited for.
    """
    largest: dict[str, float] = {}
    for each in needs:
        for name, amount in each.items():
            largest[name] = max(largest.get(name, 0), amount)
    they = f"{len(needs)} {noun}s" if len(needs) > 1 else f"1 {noun}"
    return (
        f"{they} did not get their resources within {wait_s:g} s"
        f" ({missing(needs)}; one {noun} needs "
        f"{', '.join(f'{amount:g} {name}' for name, amount in largest.items())} on one node): "
        f"ask for fewer {noun}s or less for each, wait longer, or add nodes"
    )


def missing(needs: Sequence[Mapping[str, float]]) -> str:
    """Return what is needed in all, and what there is of it."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    lines = [
        f"{name}: {amount:g} needed, {there.get(name, 0):g} in the cluster, "
        f"{free.get(name, 0):g} free"
        for name, amount in total(needs).items()
    ]
    return "; ".join(lines)


def total(bundles: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return what bundles ask for in all, by Ray's names."""
    found: dict[str, float] = {}
    for each in bundles:
        for name, amount in each.items():
            found[name] = found.get(name, 0.0) + amount
    return found
