"""The ceiling: the same stages side by side in processes that never speak to each other.

On a machine whose processors share floating-point units or memory, K stages at once are slower than
each of them alone, so K processes cannot be K times as fast. What is left is the most that a
pipeline without bubbles can reach here, whatever its wire::

    stage 0  |solo|      |F+B+step|F+B+step|F+B+step| (goes on until all are done)
    stage 1       |solo| |F+B+step  |F+B+step  |F+B+step  |
                         ^ barrier                        ^ all have their count

    period = slowest stage's mean time per batch      ceiling = sum of solo times / period

That is the *free-running* ceiling. It bounds a pipeline only where the stages cost about the same
and each has a processor: otherwise a cheap stage runs ahead, which no pipeline lets it do, and
takes from the dear ones what a pipeline would leave them. So a third part of the run, the *paced*
ceiling, lets no stage be more than `PACE_SLACK` batches ahead of a neighbour: they exchange one
byte per batch, and sleep until it comes. Compare with the better of the two.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.processes import Channel, run_group
from benchmarks.peers.workload import WARM_UP_BATCHES, Workload, check_timing

__all__ = ["PACE_SLACK", "Ceiling", "measure_ceiling"]

PACE_SLACK = 2  # batches that a stage may be ahead of a neighbour in the paced part
_TOKEN = b"t"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """Mean seconds per batch of each stage: alone, all together, and all together but paced."""

    batch_size: int
    batches: int
    solo_s: tuple[float, ...]  # while the other stages wait, asleep
    concurrent_s: tuple[float, ...]  # while all stages run freely
    paced_s: tuple[float, ...]  # while no stage runs far ahead of another, waits included

    @property
    def period_s(self) -> float:
        """Seconds per batch of the slowest stage, free-running."""
        return max(self.concurrent_s)

    @property
    def paced_period_s(self) -> float:
        """Seconds per batch of the slowest stage, paced."""
        return max(self.paced_s)

    @property
    def samples_per_s(self) -> float:
        """Throughput at the free-running period."""
        return self.batch_size / self.period_s

    @property
    def paced_samples_per_s(self) -> float:
        """Throughput at the paced period."""
        return self.batch_size / self.paced_period_s

    @property
    def serial_s(self) -> float:
        """Seconds per batch of serial back-propagation through the stages."""
        return sum(self.solo_s)

    @property
    def speed_up(self) -> float:
        """Gain over serial back-propagation at the free-running period."""
        return self.serial_s / self.period_s

    @property
    def paced_speed_up(self) -> float:
        """Gain over serial back-propagation at the paced period."""
        return self.serial_s / self.paced_period_s


def measure_ceiling(
    workload: Workload,
    *,
    batches: int = 50,
    warm_up: int = WARM_UP_BATCHES,
    timeout_s: float = 300.0,
) -> Ceiling:
    """Time each stage alone, then all at once, then all at once and paced, in the same processes.

    Every stage takes whole batches: a fixed random input, which wants its gradient past the first
    stage, and a fixed random output gradient; the last stage has the real loss.
    """
    check_timing(batches, warm_up)
    stages = len(workload.build())
    neighbours: list[list[Connection]] = [[] for _ in range(stages)]
    for left in range(stages - 1):
        ends = Pipe()
        neighbours[left].append(ends[0])
        neighbours[left + 1].append(ends[1])
    try:
        results = run_group(
            f"ceiling, {stages} stages",
            _loop,
            [(workload, batches, warm_up, neighbours[rank]) for rank in range(stages)],
            timeout_s=timeout_s,
        )
    finally:
        for connection in (end for ends_of_rank in neighbours for end in ends_of_rank):
            connection.close()
    return Ceiling(
        batch_size=workload.batch_size,
        batches=batches,
        solo_s=tuple(solo for solo, _, _ in results),
        concurrent_s=tuple(together for _, together, _ in results),
        paced_s=tuple(paced for _, _, paced in results),
    )


def _loop(
    channel: Channel,
    workload: Workload,
    batches: int,
    warm_up: int,
    neighbours: Sequence[Connection],
) -> tuple[float, float, float]:
    stages = workload.build()
    shapes = workload.shapes(stages)
    first_inputs, labels = workload.batch(stages)
    rank, last = channel.rank, len(stages) - 1
    module = stages[rank].train()
    count = len(stages)
    del stages
    optimizer = workload.optimizer(module)

    generator = torch.Generator().manual_seed(workload.seed + 2 + rank)
    if rank == 0:
        inputs = first_inputs
    else:
        inputs = torch.randn(workload.batch_size, *shapes[rank], generator=generator)
        inputs.requires_grad_()
    output_gradient = torch.randn(workload.batch_size, *shapes[rank + 1], generator=generator)
    # As small as the gradient of a mean: a fixed one of size one drives the weights to infinity.
    output_gradient /= output_gradient.numel()

    def train_one() -> None:
        optimizer.zero_grad()
        inputs.grad = None
        output: Tensor = module(inputs)
        if rank == last:
            F.cross_entropy(output, labels).backward()  # type: ignore[no-untyped-call]
        else:
            output.backward(output_gradient)  # type: ignore[no-untyped-call]
        optimizer.step()

    def mean_time() -> float:
        start = time.perf_counter()
        for _ in range(batches):
            train_one()
        return (time.perf_counter() - start) / batches

    channel.at("warm-up")
    for _ in range(warm_up):
        train_one()

    solo_s = 0.0
    for turn in range(count):
        channel.barrier(f"solo time of stage {turn}")
        if turn == rank:
            solo_s = mean_time()

    channel.barrier("concurrent batches")
    concurrent_s = mean_time()
    # The others are timed while this one runs: go on until the last of them has its count.
    channel.arrive("every stage has its count")
    while not channel.released("every stage has its count"):
        train_one()

    channel.barrier("paced batches")
    start = time.perf_counter()
    for batch in range(batches):
        if batch >= PACE_SLACK:
            for neighbour in neighbours:
                neighbour.recv_bytes()  # it has finished batch - PACE_SLACK
        train_one()
        for neighbour in neighbours:
            neighbour.send_bytes(_TOKEN)
    paced_s = (time.perf_counter() - start) / batches
    channel.barrier("end")  # nobody closes its ends while a neighbour still sends

    _check_finite(rank, module)
    return solo_s, concurrent_s, paced_s


def _check_finite(rank: int, module: torch.nn.Module) -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
        raise ValueError(f"the weights of stage {rank} must be finite, but the training diverged")
