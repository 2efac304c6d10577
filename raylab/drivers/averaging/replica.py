"""One replica of a course."""

from __future__ import annotations

import functools

from raylab.algorithms.averaging.averages import average_of
from raylab.algorithms.averaging.collective import Collective
from raylab.algorithms.averaging.worker import AveragingWorker, WorkerSettings
from raylab.algorithms.stage.module_copy import copied_module
from raylab.drivers.averaging.course import Course

__all__ = ["replica_of"]


def replica_of(
    course: Course, seat: Collective, *, worker: int, size: int, device: str = "cpu"
) -> AveragingWorker:
    """Return a replica with the weights that all begin with.

    Args:
        course: of the run; tau and delay are numbers.
        seat: for the averages of the method.
        worker: index of the replica, from 0.
        size: W.
        device: that it computes on.
    """
    settings = course.settings
    numbers = settings.numbers()
    return AveragingWorker(
        copied_module(course.model),
        WorkerSettings(
            rule=numbers,
            worker=worker,
            seed=settings.seed,
            clip_norm=settings.clip_norm,
            clip_value=settings.clip_value,
            precision=settings.precision,
            device=device,
        ),
        optimizer=course.optimizer,
        schedule=course.bound(size),
        loss_fn=course.loss_fn,
        average=functools.partial(
            average_of,
            seat,
            averages=numbers.averages,
            dtype=settings.average_dtype,
            top_k=settings.average_top_k,
        ),
    )
