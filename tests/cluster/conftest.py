"""Several Ray nodes on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import ray
from ray.cluster_utils import Cluster


@contextlib.contextmanager
def _nodes(*cpus: int) -> Iterator[Cluster]:
    head, *others = cpus
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head})
    for each in others:
        cluster.add_node(num_cpus=each)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="session")
def nodes() -> Callable[..., AbstractContextManager[Cluster]]:
    """Give what starts a cluster of nodes with so many CPUs, the head first, and joins it."""
    return _nodes
