"""A model's step and the cluster's network, timed on workers that are placed for it.

The workers are Ray's, one on each node where there are several; torch.distributed averages between
them, as it does in training. On one node it stays on the loopback.
"""

from __future__ import annotations

from dataclasses import dataclass

import ray
from torch import nn

from actors.groups.group import Group
from actors.groups.placement import Post
from actors.wires.process_groups import LOOPBACK
from raylab.drivers.averaging.probe_actor import ProbeActor
from raylab.drivers.cluster import connect, stage_resources, threads_of
from raylab.drivers.told import told
from raylab.errors import ConfigError

__all__ = ["Measured", "measure"]

_WAIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was timed, in seconds; medians of the slowest worker.

    Args:
        workers: that took part.
        nodes: that they lived on.
        backend: of torch.distributed, gloo or nccl.
        step_s: t_p; None: not timed.
        all_reduce_s: t_c; None: not timed.
    """

    workers: int
    nodes: int
    backend: str
    step_s: float | None
    all_reduce_s: float | None


def measure(
    *,
    model: nn.Sequential | None,
    input_shape: tuple[int, ...],
    average_bytes: int | None,
    workers: int | None = None,
    wait_s: float = _WAIT_S,
) -> Measured:
    """Time a step, or an average, or both, on every worker at once.

    Args:
        model: whose step is timed; None: no step.
        input_shape: of one local batch, (N, C, H, W).
        average_bytes: of the average that is timed; None: no average.
        workers: that take part, each with a GPU if the cluster has as many; None: one on each
            node, at least two.
        wait_s: how long to wait for the cluster to have the resources.

    Raises:
        ConfigError: fewer than two workers.
        ResourceError: the cluster does not have the resources in time.
        RaylabError: a worker failed.
    """
    own = connect()
    count = max(2, _nodes()) if workers is None else workers
    if count < 2:
        raise ConfigError(f"an average is measured between at least 2 workers, but got {count}")
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    asked = {"CPU": 1.0, "GPU": 1.0} if total.get("GPU", 0) >= count else None
    resources = stage_resources(asked, count, own=own)
    posts = {
        index: Post(
            actor=ProbeActor,
            arguments=(index, threads_of(each), index),
            resources=each,
        )
        for index, each in enumerate(resources)
    }
    with told(), Group(posts, wait_s, strategy="SPREAD", noun="worker") as group:
        nodes = len({home.node_id for home in group.homes})
        host = LOOPBACK if nodes == 1 else group.homes[0].host
        (place,) = group.ask([group.handle(0).open_store.remote(host)])
        group.ask(each.join.remote(place, count, []) for each in group.handles)
        backend, *_ = group.ask(each.meet.remote() for each in group.handles)
        step_s = all_reduce_s = None
        if average_bytes is not None:
            calls = [each.time_average.remote(average_bytes) for each in group.handles]
            all_reduce_s = max(group.ask(calls))
        if model is not None:
            shared = ray.put(model)
            calls = [each.time_step.remote(shared, input_shape) for each in group.handles]
            step_s = max(group.ask(calls))
    return Measured(
        workers=count, nodes=nodes, backend=backend, step_s=step_s, all_reduce_s=all_reduce_s
    )


def _nodes() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
