"""How long a step and an average take, timed by a worker in a process group that is there.

All workers call these at the same time with the same arguments: each waits for the others before
every repetition, and all return the time of the slowest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from actors.averaging.collective import reaching_peers

__all__ = ["average_time_s", "step_time_s"]

_WARM_UPS = 2
_REPEATS = (3, 15)
"""Of each measurement at least and at most, after the warm-ups."""
_BUDGET_S = 10.0
"""Time after which the rest of the repetitions is left out."""


def average_time_s(
    average_bytes: int, device: torch.device, group: dist.ProcessGroup | None = None
) -> float:
    """Return the time of an all-reduce of a flat float32 tensor, in seconds: t_c.

    Args:
        average_bytes: of the tensor, rounded up to whole numbers.
        device: where it lies.
        group: of the workers; None: the default one.
    """
    flat = torch.zeros(-(-average_bytes // 4), dtype=torch.float32, device=device)

    def reduce() -> None:
        with reaching_peers():
            dist.all_reduce(flat, group=group)

    return _slowest_median_s(reduce, device, group)


def step_time_s(
    step: Callable[[], object], device: torch.device, group: dist.ProcessGroup | None = None
) -> float:
    """Return the time of a local step while all workers make theirs, in seconds: t_p.

    Args:
        step: forward, backward and update of one batch.
        device: that it computes on.
        group: of the workers; None: the default one.
    """
    return _slowest_median_s(step, device, group)


def _slowest_median_s(
    work: Callable[[], object], device: torch.device, group: dist.ProcessGroup | None
) -> float:
    def timed() -> float:
        with reaching_peers():
            dist.barrier(group=group)
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    for _ in range(_WARM_UPS):
        last = timed()
    # All must repeat equally often, so they agree on how long one repetition takes.
    fewest, most = _REPEATS
    repeats = min(most, max(fewest, int(_BUDGET_S / max(_largest(last, device, group), 1e-9))))
    return _largest(statistics.median(timed() for _ in range(repeats)), device, group)


def _largest(value: float, device: torch.device, group: dist.ProcessGroup | None) -> float:
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    with reaching_peers():
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=group)
    return float(shared)
