"""DistributedDataParallel over gloo: the whole network in every process, the batch divided."""

from __future__ import annotations

import time

from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.processes import Channel, run_group
from benchmarks.peers.rendezvous import gloo, open_store
from benchmarks.peers.workload import (
    WARM_UP_BATCHES,
    Sample,
    Workload,
    check_timing,
    sample_of,
)

__all__ = ["measure_ddp"]


def measure_ddp(
    workload: Workload,
    *,
    processes: int = 2,
    batches: int = 50,
    warm_up: int = WARM_UP_BATCHES,
    timeout_s: float = 300.0,
) -> Sample:
    """Time data parallelism at the same global batch; each rank takes `batch_size / processes`.

    Raises: ValueError: the batch does not divide evenly.
    """
    check_timing(batches, warm_up)
    if workload.batch_size % processes:
        raise ValueError(
            "`batch_size % processes == 0` must hold, "
            f"but got (batch_size={workload.batch_size}, processes={processes})"
        )
    store = open_store(timeout_s)
    results = run_group(
        f"DDP, {processes} processes",
        _train,
        [(workload, store.port, processes, batches, warm_up, timeout_s) for _ in range(processes)],
        timeout_s=timeout_s,
    )
    # The shares are equal, so the mean of their mean losses is the loss of the batch.
    loss = sum(loss for _, loss in results) / processes
    return sample_of(workload.batch_size, [times for times, _ in results], loss)


def _train(
    channel: Channel,
    workload: Workload,
    port: int,
    processes: int,
    batches: int,
    warm_up: int,
    timeout_s: float,
) -> tuple[list[float], float]:
    stages = workload.build()
    inputs, labels = workload.batch(stages)
    share = workload.batch_size // processes
    mine = slice(channel.rank * share, (channel.rank + 1) * share)
    inputs, labels = inputs[mine].clone(), labels[mine].clone()
    times: list[float] = []
    channel.at("rendezvous")
    with gloo(port, channel.rank, processes, timeout_s):
        network = DistributedDataParallel(nn.Sequential(*stages).train())
        optimizer = workload.optimizer(network)
        channel.at("warm-up")
        for batch in range(-warm_up, batches):
            if batch == 0:
                channel.barrier("timed batches")
                times.append(time.perf_counter())
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if batch >= 0:
                times.append(time.perf_counter())
        channel.barrier("end")  # nobody closes its sockets while another still reads
    return times, loss.item()
