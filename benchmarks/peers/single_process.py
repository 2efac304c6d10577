"""The plain training loop in one process."""

from __future__ import annotations

import time

from torch import nn
from torch.nn import functional as F

from benchmarks.peers.processes import Channel, run_group
from benchmarks.peers.workload import (
    WARM_UP_BATCHES,
    Sample,
    Workload,
    check_timing,
    sample_of,
)

__all__ = ["measure_single_process"]


def measure_single_process(
    workload: Workload,
    *,
    threads: int = 1,
    batches: int = 50,
    warm_up: int = WARM_UP_BATCHES,
    timeout_s: float = 300.0,
) -> Sample:
    """Time forward, backward and step of the whole network in a child of `threads` threads."""
    check_timing(batches, warm_up)
    [(times, loss)] = run_group(
        f"single process, threads={threads}",
        _train,
        [(workload, batches, warm_up)],
        timeout_s=timeout_s,
        threads=threads,
    )
    return sample_of(workload.batch_size, [times], loss)


def _train(
    channel: Channel, workload: Workload, batches: int, warm_up: int
) -> tuple[list[float], float]:
    stages = workload.build()
    inputs, labels = workload.batch(stages)
    network = nn.Sequential(*stages).train()
    optimizer = workload.optimizer(network)
    times: list[float] = []
    channel.at("warm-up")
    for batch in range(-warm_up, batches):
        if batch == 0:
            channel.at("timed batches")
            times.append(time.perf_counter())
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if batch >= 0:
            times.append(time.perf_counter())
    return times, loss.item()
