"""A worker process with torchft's local SGD and its Streaming DiLoCo.

DiLoCo with `fragment_sync_delay` d, `fragment_update_alpha` xi, one fragment and plain SGD of rate
1 outside averages as DaSGD does. Run by an interpreter with torchft 0.2; imports no raylab.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.optim import SGD
from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo, LocalSGD

from benchmarks.shaped.flat_model import FlatModel
from benchmarks.shaped.serving import RATE, Answer, Task, meet, plain_step, serve, timed

_LIGHTHOUSE_OFFSET = 1
"""Of its port from that of the meeting."""


@contextmanager
def manager(place: Mapping[str, Any]) -> Iterator[Manager]:
    """Hold a replica group of one worker among all of them."""
    timeout = timedelta(seconds=place["timeout_s"])
    store = dist.TCPStore(place["address"], 0, is_master=True, wait_for_workers=False)
    found = Manager(
        pg=ProcessGroupGloo(timeout=timeout),
        load_state_dict=None,
        state_dict=None,
        min_replica_size=place["size"],
        use_async_quorum=False,
        init_sync=False,
        timeout=timeout,
        quorum_timeout=timeout,
        rank=0,
        world_size=1,
        store_addr=place["address"],
        store_port=store.port,
        lighthouse_addr=f"http://{place['meets_at']}:{place['port'] + _LIGHTHOUSE_OFFSET}",
        replica_id=f"worker_{place['rank']}",
        hostname=place["address"],
    )
    try:
        yield found
        dist.barrier()
    finally:
        found.shutdown()


def local_sgd(task: Task, place: Mapping[str, Any]) -> Answer:
    """LocalSGD."""
    model = FlatModel(task["megabytes"], task["compute_s"])
    optimizer = SGD(model.parameters(), lr=RATE)
    with manager(place) as held, LocalSGD(held, model, optimizer, sync_every=task["tau"]):
        return timed(task, plain_step(model, optimizer))


def diloco(task: Task, place: Mapping[str, Any]) -> Answer:
    """DiLoCo with DaSGD's numbers."""
    model = FlatModel(task["megabytes"], task["compute_s"])
    optimizer = SGD(model.parameters(), lr=RATE)
    with (
        manager(place) as held,
        DiLoCo(
            held,
            [model],
            optimizer,
            SGD(model.parameters(), lr=1.0),
            sync_every=task["tau"],
            fragment_sync_delay=task["delay"],
            fragment_update_alpha=task["xi"],
        ),
    ):
        return timed(task, plain_step(model, optimizer))


def main() -> None:
    """Serve."""
    logging.disable(logging.INFO)
    place = json.loads(sys.argv[1])
    lighthouse = None
    if place["rank"] == 0:
        port = place["port"] + _LIGHTHOUSE_OFFSET
        lighthouse = LighthouseServer(
            bind=f"{place['address']}:{port}", min_replicas=place["size"], join_timeout_ms=1000
        )
    meet(place)
    serve(
        {
            "torchft_local_sgd": functools.partial(local_sgd, place=place),
            "torchft_diloco": functools.partial(diloco, place=place),
        }
    )
    if lighthouse is not None:
        lighthouse.shutdown()


if __name__ == "__main__":
    main()
