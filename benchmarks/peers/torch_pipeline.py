"""GPipe and 1F1B of torch.distributed.pipelining, one stage per process, over gloo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F

from benchmarks.peers.processes import Channel, run_group
from benchmarks.peers.rendezvous import gloo, open_store
from benchmarks.peers.workload import (
    WARM_UP_BATCHES,
    Sample,
    Workload,
    check_timing,
    sample_of,
)

__all__ = [
    "MICRO_BATCH_COUNTS",
    "ScheduleName",
    "best_micro_batches",
    "measure_torch_pipeline",
    "sweep_micro_batches",
]

ScheduleName = Literal["gpipe", "1f1b"]
MICRO_BATCH_COUNTS = (2, 4, 8)


def measure_torch_pipeline(
    workload: Workload,
    *,
    schedule: ScheduleName,
    micro_batches: int,
    batches: int = 50,
    warm_up: int = WARM_UP_BATCHES,
    timeout_s: float = 300.0,
) -> Sample:
    """Time one schedule; the optimiser of every stage steps once per batch.

    Raises: ValueError: the batch does not divide evenly, or 1F1B has fewer micro-batches than
        stages.
    """
    check_timing(batches, warm_up)
    stages = len(workload.build())
    if workload.batch_size % micro_batches:
        raise ValueError(
            "`batch_size % micro_batches == 0` must hold, "
            f"but got (batch_size={workload.batch_size}, micro_batches={micro_batches})"
        )
    if schedule == "1f1b" and micro_batches < stages:
        raise ValueError(
            "`micro_batches >= stages` must hold for 1F1B, "
            f"but got (micro_batches={micro_batches}, stages={stages})"
        )
    store = open_store(timeout_s)
    results = run_group(
        f"torch pipelining, {schedule}, {stages} stages, {micro_batches} micro-batches",
        _train,
        [
            (workload, store.port, schedule, micro_batches, batches, warm_up, timeout_s)
            for _ in range(stages)
        ],
        timeout_s=timeout_s,
    )
    return sample_of(workload.batch_size, [times for times, _ in results], results[-1][1])


def sweep_micro_batches(
    workload: Workload,
    *,
    schedule: ScheduleName,
    micro_batches: Sequence[int] = MICRO_BATCH_COUNTS,
    batches: int = 50,
    warm_up: int = WARM_UP_BATCHES,
    timeout_s: float = 300.0,
) -> dict[int, Sample]:
    """Time one schedule at several numbers of micro-batches; `timeout_s` holds for each."""
    return {
        count: measure_torch_pipeline(
            workload,
            schedule=schedule,
            micro_batches=count,
            batches=batches,
            warm_up=warm_up,
            timeout_s=timeout_s,
        )
        for count in micro_batches
    }


def best_micro_batches(sweep: dict[int, Sample]) -> int:
    """Pick the number of micro-batches of the highest throughput."""
    return max(sweep, key=lambda count: sweep[count].samples_per_s)


def _train(
    channel: Channel,
    workload: Workload,
    port: int,
    schedule_name: ScheduleName,
    micro_batches: int,
    batches: int,
    warm_up: int,
    timeout_s: float,
) -> tuple[list[float], float]:
    # Every rank builds every stage, so that all peers start from the same weights.
    stages = workload.build()
    inputs, labels = workload.batch(stages)
    rank, last = channel.rank, len(stages) - 1
    module = stages[rank].train()
    optimizer = workload.optimizer(module)
    world_size = len(stages)
    del stages
    times: list[float] = []
    losses: list[Tensor] = []
    channel.at("rendezvous")
    with gloo(port, rank, world_size, timeout_s):
        stage = PipelineStage(module, rank, world_size, torch.device("cpu"))
        kind = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[schedule_name]
        # The loss of a micro-batch is a mean; the schedule divides gradients by their number.
        schedule = kind(stage, micro_batches, loss_fn=F.cross_entropy)
        channel.at("warm-up")
        for batch in range(-warm_up, batches):
            if batch == 0:
                channel.barrier("timed batches")
                times.append(time.perf_counter())
            optimizer.zero_grad()
            # On one rank or another: the first stage is given inputs, the last one labels.
            arguments = (inputs,) if rank == 0 else ()
            if rank == last:
                losses.clear()
                schedule.step(*arguments, target=labels, losses=losses, return_outputs=False)
            else:
                schedule.step(*arguments, return_outputs=False)
            optimizer.step()
            if batch >= 0:
                times.append(time.perf_counter())
        channel.barrier("end")  # nobody closes its sockets while another still reads
    loss = torch.stack(losses).mean().item() if rank == last else 0.0
    return times, loss
