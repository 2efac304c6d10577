"""Where a replica begins: at its saved part, or at the mean of all parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raylab.algorithms.averaging.states import mean_state
from raylab.algorithms.averaging.worker import AveragingWorker
from raylab.drivers.averaging.course import Course
from raylab.drivers.averaging.loop import AveragingLoop
from raylab.errors import ConfigError
from raylab.optimizers import Schedule

__all__ = ["begin"]


def begin(
    course: Course,
    loop: AveragingLoop,
    workers: Sequence[AveragingWorker],
    parts: Sequence[Mapping[str, Any]],
) -> None:
    """Put loop and local replicas where the parts of a checkpoint say.

    With as many workers as were saved each one takes its own part, and the run goes on as if it
    had not been interrupted. With another number all begin at the mean, and the batches of the
    epoch that are left are dealt out anew.

    Args:
        course: of the run.
        loop: of the local replicas.
        workers: the local replicas.
        parts: of all saved workers, in their order.

    Raises:
        ConfigError: they are of a run with other settings.
    """
    state = parts[0]["loop"]
    for name, value in loop.about.items():
        if state["about"].get(name) != value:
            raise ConfigError(
                f"a run goes on with the settings that it began with, but {name} was "
                f"{state['about'].get(name)!r} and is {value!r}: leave it as it was, or begin a "
                "new run from the weights in checkpoints/"
            )
    same = len(parts) == loop.size
    replicas: list[Mapping[str, Any]] = [part["replica"] for part in parts]
    if not same:
        replicas = [mean_state(replicas)] * loop.size
    for worker in workers:
        index = worker.settings.worker
        worker.restore(replicas[index])
        if same:
            worker.figures.restore(parts[index]["figures"])
        elif index == 0:
            worker.figures.restore(_summed([part["figures"] for part in parts]))
    loop.restore(state)
    if not same and isinstance(course.schedule, Schedule):
        steps = course.steps_per_epoch(loop.size)
        for worker in workers:
            worker.reschedule(steps * state["epoch"] + state["taken"] // loop.size)


def _summed(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in figures) for name in figures[0]}
