"""A worker that measures and does not train: one step of a model, one average over the cluster."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from actors.groups.member import GROUPS, Member, has_gpu
from raylab.drivers.averaging.timing import average_time_s, step_time_s

__all__ = ["ProbeActor"]

_AVERAGE_S = 600.0
"""Longest time that one average may take: hundreds of megabytes over a slow network."""


class ProbeWorker(Member):
    """One of the workers that are timed, in the process of its actor; it has joined the others.

    Args:
        worker: from 0.
        threads: of torch's operators in this process.
        seed: of the process's global generators.
    """

    def __init__(self, worker: int, threads: int, seed: int) -> None:
        super().__init__(worker, f"worker {worker}", threads, seed)
        self._group: dist.ProcessGroup | None = None

    def meet(self) -> str:
        """Make the group that averages, and return its backend: NCCL on GPUs, else gloo."""
        backend = "nccl" if has_gpu() else "gloo"
        self._group = dist.new_group(backend=backend, timeout=timedelta(seconds=_AVERAGE_S))
        return backend

    def time_average(self, average_bytes: int) -> float:
        """Return t_c of the slowest worker in seconds."""
        return average_time_s(average_bytes, self._copies().device, self._group)

    def time_step(self, model: nn.Sequential, input_shape: tuple[int, ...]) -> float:
        """Return t_p of the slowest worker in seconds: cross entropy and SGD with momentum."""
        device = self._copies().device
        model = model.to(device).train()
        x = torch.randn(input_shape, device=device)
        with torch.no_grad():
            target = torch.zeros_like(model(x)).argmax(1)
        # The update is computed in full, but the weights stay: nothing can run away.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x), target))
            optimizer.step()

        return step_time_s(step, device, self._group)


ProbeActor: Any = ray.remote(concurrency_groups=GROUPS)(ProbeWorker)  # type: ignore[call-overload]
"""`ProbeWorker` as a Ray actor: options, then `remote(worker, threads, seed)`."""
