"""Where gloo processes of one machine meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["gloo", "open_store"]

_HOST = "127.0.0.1"


def open_store(timeout_s: float) -> TCPStore:
    """Open the store that the children join by its `port`; it lives as long as the object.

    The parent binds port 0 and keeps it: a port that is found, closed and bound again by a child
    can be taken by somebody else in between.
    """
    return TCPStore(
        _HOST,
        0,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )


@contextmanager
def gloo(port: int, rank: int, world_size: int, timeout_s: float) -> Iterator[None]:
    """Hold a gloo process group over loopback."""
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(_HOST, port, is_master=False, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()
