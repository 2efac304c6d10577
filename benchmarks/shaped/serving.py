"""The frame of a worker process: it meets the others, then does what it is told.

A task is a line of JSON on standard input, its answer one on standard output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.shaped.flat_model import batch, loss

__all__ = ["RATE", "Answer", "Task", "Way", "meet", "plain_step", "serve", "timed"]

Task = Mapping[str, Any]
Answer = dict[str, float]
Way = Callable[[Task], Answer]

RATE = 1e-3
"""Of every optimiser."""


def meet(place: Mapping[str, Any]) -> None:
    """Join the process group of all workers, on gloo."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{place['meets_at']}:{place['port']}",
        rank=place["rank"],
        world_size=place["size"],
        timeout=timedelta(seconds=place["timeout_s"]),
    )


def serve(ways: Mapping[str, Way]) -> None:
    """Do tasks until standard input ends, each in the way that it names."""
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(ways[task["way"]](task)), flush=True)
    dist.destroy_process_group()


def timed(
    task: Task, step: Callable[[], Any], blocked: Callable[[], float] | None = None
) -> Answer:
    """Return seconds a step, and those of them that a method says it was blocked.

    Nothing is drained before the first timed step or after the last one: an average that is under
    way then stands for the one that is under way at the end.

    Args:
        task: says how many steps, and how many before them.
        step: one of them.
        blocked: returns the seconds since it was called last; None: the method does not say.
    """
    dist.barrier()
    for _ in range(task["warm_up"]):
        step()
    if blocked is not None:
        blocked()
    began = time.perf_counter()
    for _ in range(task["steps"]):
        step()
    answer = {"step_s": (time.perf_counter() - began) / task["steps"]}
    if blocked is not None:
        answer["blocked_s"] = blocked() / task["steps"]
    return answer


def plain_step(model: nn.Module, optimizer: Any) -> Callable[[], None]:
    """Return what a user's loop does with a batch."""

    def step() -> None:
        x, y = batch()
        optimizer.zero_grad()
        loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
