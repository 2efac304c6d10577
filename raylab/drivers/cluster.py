"""The Ray cluster a run uses: the one that is there, or one of its own on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping

import ray
from ray.util.placement_group import placement_group_table

from actors.groups.placement import total
from actors.groups.warm import warm_actors
from actors.groups.within import within
from raylab.drivers.ray_start import connect, started_here
from raylab.errors import ConfigError

__all__ = [
    "connect",
    "patience_s",
    "resources_asked",
    "room",
    "stage_resources",
    "threads_of",
    "waiting_groups",
]

_OWN_WAIT_S, _CLUSTER_WAIT_S = 60.0, 1800.0


def stage_resources(
    asked: Mapping[str, float] | None, stages: int, *, own: bool
) -> list[dict[str, float]]:
    """Return what each stage asks of the cluster.

    Args:
        asked: by the user for each stage; None: one CPU.
        stages: K.
        own: the cluster is this run's own machine: K stages share its CPUs if they are fewer.

    Raises:
        ConfigError: no CPU, or a negative amount.
    """
    if asked is None:
        cpus = 1.0
        if own:
            total = float(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
            cpus = min(1.0, math.floor(100 * total / stages) / 100)
        return [{"CPU": cpus} for _ in range(stages)]
    each = {name: float(amount) for name, amount in asked.items() if amount}
    if any(amount < 0 for amount in each.values()):
        raise ConfigError(f"resources must not be negative, but got {dict(asked)}")
    if not each.get("CPU"):
        raise ConfigError(
            f"a stage must ask for some CPU, or the cluster may take its node away, but got "
            f"{dict(asked)}: add CPU, for instance 0.5"
        )
    return [dict(each) for _ in range(stages)]


def resources_asked(cpus: float | None, gpus: float = 0.0) -> dict[str, float] | None:
    """Return what a configuration asks for each actor; None: nothing is said, the default."""
    return None if cpus is None and not gpus else {"CPU": cpus or 1.0, "GPU": gpus}


def room(needs: Mapping[str, float]) -> int:
    """Return how many bundles of resources the cluster could give now, those aside that others wait
    for in a placement group; negative: how many they miss. A group that the whole cluster could
    not hold is not waited for. What warm actors hold can be given, and is given to those who wait.
    A run within a placement group of others keeps to what it has: 0.

    Args:
        needs: of a bundle.
    """
    if within() is not None:
        return 0
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    warm = warm_actors()
    waiting = waiting_groups()
    if warm is not None and waiting:
        warm.give_way()
    elif warm is not None:
        held = warm.resources
        free = {name: free.get(name, 0.0) + held.get(name, 0.0) for name in free | held}
    for asked in waiting:
        possible = all(amount <= there.get(name, 0.0) for name, amount in asked.items())
        if possible:
            free = {name: free.get(name, 0.0) - asked.get(name, 0.0) for name in free | asked}
    return min(math.floor(free.get(name, 0.0) / amount + 1e-6) for name, amount in needs.items())


def waiting_groups() -> list[dict[str, float]]:
    """Return what each placement group asks for in all that waits for room in the cluster."""
    return [
        total(group["bundles"].values())
        for group in placement_group_table().values()
        if group["state"] == "PENDING"
    ]


def patience_s(asked: float | None) -> float:
    """Return how long to wait for resources, once Ray is there.

    Args:
        asked: by the user; None: a minute where Ray was started here, for no more will come; half
            an hour on a cluster, where nodes may have to be started and others to end.
    """
    if asked is not None:
        return asked
    return _OWN_WAIT_S if started_here() else _CLUSTER_WAIT_S


def threads_of(resources: Mapping[str, float]) -> int:
    """Return torch's threads for a stage: its whole CPUs, at least one."""
    return max(1, int(resources.get("CPU", 1)))
