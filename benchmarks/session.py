"""A Ray of a benchmark's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ray

__all__ = ["ray_session"]


@contextlib.contextmanager
def ray_session(cpus: int) -> Iterator[None]:
    """Start a local Ray whose actors have the priority of any process, and end it."""
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"worker_niceness": 0},
    )
    try:
        yield
    finally:
        ray.shutdown()
