"""What every worker of Ray Train's group runs."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from actors.averaging.collective import DistributedCollective, lost_peer, own_group
from actors.errors import LinkError, MechanismError
from actors.user_errors import describe_error, with_traceback
from raylab.algorithms.stage.module_copy import copied_state
from raylab.drivers.averaging.beginning import begin
from raylab.drivers.averaging.course import Course, Row
from raylab.drivers.averaging.keeping import RayKeeper, saved_parts
from raylab.drivers.averaging.loop import AveragingLoop
from raylab.drivers.averaging.replica import replica_of
from raylab.drivers.averaging.settings import AveragingSettings
from raylab.drivers.averaging.timing import average_time_s, step_time_s
from raylab.errors import RaylabError

__all__ = ["train_worker"]

_WHERE = "raylab_where"
"""Attribute of an error: what it was raised at."""


def train_worker(course: Course, board: Any, threads: int) -> None:
    """Train as one worker of the group; the first one puts rows and weights on the board.

    What a worker computed wrongly would go wrong again: it is put on the board, and a group that
    Ray Train has started anew ends at once. A worker that is lost, or that cannot reach another,
    is a reason to start anew.

    Args:
        course: of the run.
        board: takes rows and failures, and lives as long as the run.
        threads: of torch.

    Raises:
        Exception: the worker failed.
    """
    if ray.get(board.failure.remote()) is not None:
        return
    torch.set_num_threads(threads)
    _say_less()
    try:
        _train(course, board)
    except Exception as error:
        if lost_peer(error, reaching=False):
            board.put.remote("lost", str(error))
            raise LinkError(str(error)) from None
        if isinstance(error, MechanismError):
            raise
        if not isinstance(error, RaylabError):
            traceback.print_exc()
        told = _told(error)
        ray.get(board.fail.remote(told))
        # Not the user's own, which Ray Train might not be able to read.
        raise told from error


def _say_less() -> None:
    """Keep Ray Train's reports and traces in its files: failures are put on the board, and a loss
    that the run bears is a line of the driver's.
    """
    for handler in logging.getLogger("ray.train").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)


def _train(course: Course, board: Any) -> None:
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    parts = saved_parts(ray.train.get_checkpoint())
    # Averages have a group of their own: nothing else is ever in their way.
    seat = DistributedCollective(own_group(), device)
    course = _decided(course, parts, size, device)
    worker = replica_of(course, seat, worker=rank, size=size, device=str(device))

    def on_rows(rows: Sequence[Row]) -> None:
        board.put.remote("rows", rows)

    def asked() -> bool:
        return rank == 0 and bool(ray.get(board.asked.remote()))

    def leaves() -> bool:
        return rank == 0 and bool(ray.get(board.leaves.remote()))

    loop = AveragingLoop(
        course,
        [worker],
        [DistributedCollective(None, device)],
        on_rows=on_rows,
        keeper=RayKeeper(),
        asked=asked,
        leaves=leaves,
        about=_about(course.settings),
    )
    if parts:
        begin(course, loop, [worker], parts)
    if rank == 0:
        numbers = {"workers": size, "step": loop.step, **_about(course.settings)}
        numbers["niceness"] = os.getpriority(os.PRIO_PROCESS, 0)
        board.put.remote("began", numbers)
    try:
        loop.run()
    except Exception as error:
        with contextlib.suppress(Exception):  # the user's class may take no attributes
            setattr(error, _WHERE, f"step {loop.step} of worker {rank}")
        raise
    if rank != 0:
        return
    state = copied_state(dict(loop.model.state_dict()))
    outcome = {"rows": loop.rows, "weights": state, "workers": size, "stopped": loop.stopped}
    outcome["left"] = loop.left
    ray.get(board.finish.remote(outcome))


def _decided(
    course: Course, parts: Sequence[Mapping[str, Any]], size: int, device: torch.device
) -> Course:
    """Return the course with tau and the delay as numbers: those before, or measured now."""
    settings = course.settings
    if not settings.automatic:
        return course
    if parts:
        about = parts[0]["loop"]["about"]
        return replace(course, settings=replace(settings, tau=about["tau"], delay=about["delay"]))
    alone = replace(course, settings=replace(settings, tau=1, delay=0))
    seat = DistributedCollective(None, device)
    worker = replica_of(alone, seat, worker=0, size=size, device=str(device))
    x, y = next(iter(course.batches))
    worker.settings = replace(worker.settings, rule=replace(worker.settings.rule, tau=2**31))
    step_s = step_time_s(functools.partial(worker.begin, x, y), device)
    average_s = 0.0
    if size > 1:
        flat = worker.weights.read()
        average_s = average_time_s(flat.numel() * flat.element_size(), device)
    return replace(course, settings=settings.decided(step_s, average_s))


def _about(settings: AveragingSettings) -> dict[str, Any]:
    numbers = settings.numbers()
    return {
        "method": settings.method,
        "seed": settings.seed,
        "tau": numbers.tau,
        "delay": numbers.delay,
        "xi": numbers.xi,
    }


def _told(error: BaseException) -> Exception:
    """Return an error that travels: raylab's own as it is, another by its text."""
    if isinstance(error, RaylabError):
        return with_traceback(type(error)(str(error)), error)
    where = getattr(error, _WHERE, "a worker")
    return with_traceback(RaylabError(f"{where} failed: {describe_error(error)}"), error)
