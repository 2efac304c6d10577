"""A configuration becomes a run with all replicas in this process, and its folder. No Ray.

What is computed is computed as on W workers: the same loop, the same rule. The time is a model:

    a step of all workers      t_p, modelled or measured here
    an average                 t_c, by the planner's formula for the network that is given
    waiting for it             t_c - d t_p if that is positive; t_c at every step of minibatch_sgd
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from raylab.algorithms.averaging.collective import SerialCollectives
from raylab.algorithms.averaging.flat import FlatTensors, trainable
from raylab.config import AveragingSimulationConfig
from raylab.drivers.averaging.check import check_fits
from raylab.drivers.averaging.course import Course, Row
from raylab.drivers.averaging.loop import AveragingLoop
from raylab.drivers.averaging.replica import replica_of
from raylab.drivers.averaging.resolved import resolve_averaging, settings_of
from raylab.drivers.averaging.rows import summary_figures
from raylab.drivers.averaging.settings import AveragingSettings
from raylab.drivers.ingredients import data_of, model_of, optimizer_of, schedule_of
from raylab.drivers.kept import write_run
from raylab.errors import ConfigError
from raylab.planner import Network, all_reduce_s
from raylab.records import RunFolder, Storage
from raylab.report import Progress

__all__ = ["Replicas", "simulate_averaging"]


class Replicas:
    """W replicas in this process and the loop over them.

    Args:
        course: of the run; tau and delay are numbers.
        size: W.
        options: of `AveragingLoop`.
    """

    def __init__(self, course: Course, size: int, **options: Any) -> None:
        self.workers = [
            replica_of(course, seat, worker=worker, size=size)
            for worker, seat in enumerate(SerialCollectives(size).seats)
        ]
        self.loop = AveragingLoop(course, self.workers, SerialCollectives(size).seats, **options)


def simulate_averaging(config: AveragingSimulationConfig, *, progress: bool) -> dict[str, Any]:
    """Run what `config` says and return the summary.

    Args:
        config: of the run.
        progress: show progress on standard error.

    Raises:
        InputError: the configuration does not fit together, or the data.
        RaylabError: the run failed.
    """
    began = time.perf_counter()
    if config.workers % config.workers_per_node:
        raise ConfigError(
            f"workers_per_node must divide workers, but got {config.workers_per_node} with "
            f"workers={config.workers}"
        )
    config = resolve_averaging(config)
    data = data_of(config)
    config = config.model_copy(update={"data": data.name})
    model = model_of(config, data)
    flat = FlatTensors(trainable(model)).read()
    settings = settings_of(config)
    average_s = _average_s(config, flat)
    if settings.automatic:
        if config.step_s is None:
            raise ConfigError(
                "tau=auto and delay=auto need the time of a step in a simulation: give step_s, or "
                "numbers"
            )
        settings = settings.decided(config.step_s, average_s)
    course = Course(
        settings=settings,
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=optimizer_of(config),
        schedule=schedule_of(config),
        batches=data.train,
        test=data.test,
        epochs=config.epochs,
        evaluate_every=config.evaluate_every,
        report_every=config.report_every,
    )
    check_fits(model, course.loss_fn, course.optimizer, course.batches, course.test)
    numbers = settings.numbers()
    written = config.model_dump()
    written |= {"tau": numbers.tau, "delay": numbers.delay, "xi": numbers.xi}
    title = f"{settings.rule.title} W={config.workers}, simulated"
    with RunFolder(Storage.at(config.storage), str(config.name)) as folder:
        folder.write_config(written)
        with Progress(title, len(data.train) * config.epochs, enabled=progress) as bar:
            replicas = Replicas(
                course,
                config.workers,
                timed=_Modelled(config, settings, average_s),
                on_rows=lambda rows: bar.show(rows[-1]["step"] * config.workers, rows),
            )
            replicas.loop.run()
        figures = {
            **summary_figures(replicas.loop.rows, config.workers),
            "clock": "virtual",
            "simulated_in_s": time.perf_counter() - began,
            "average_s": average_s,
        }
        state = replicas.loop.model.state_dict()
        return write_run(folder, replicas.loop.rows, state, written, figures).summary


class _Modelled:
    """Gives rows the times that W workers would have needed.

    Args:
        config: says what the machines are.
        settings: of the run.
        average_s: t_c.
    """

    def __init__(
        self, config: AveragingSimulationConfig, settings: AveragingSettings, average_s: float
    ) -> None:
        self._config = config
        self._numbers = settings.numbers()
        self._average_s = average_s
        self._step = 0
        self._time_s = 0.0

    def __call__(self, row: Row) -> Row:
        """Return the row with modelled times."""
        steps, workers = row["step"] - self._step, self._config.workers
        step_s = self._config.step_s or row["trained_s"] / max(1, steps * workers)
        late_s = self._average_s - self._numbers.delay * step_s
        blocked_s = row["averages"] * max(0.0, late_s)
        trained_s = steps * step_s + blocked_s
        self._step, self._time_s = row["step"], self._time_s + trained_s
        return {
            **row,
            "time_s": self._time_s,
            "trained_s": trained_s,
            "samples_per_s": row["samples"] / trained_s if trained_s > 0 else 0.0,
            "blocked_s": blocked_s,
            "blocked_share": blocked_s / trained_s if trained_s > 0 else 0.0,
            "worker_blocked_s": [blocked_s] * workers,
        }


def _average_s(config: AveragingSimulationConfig, flat: torch.Tensor) -> float:
    """Return t_c of what is sent."""
    entry = 2 if config.average_dtype == "bfloat16" else flat.element_size()
    size = entry * flat.numel()
    if config.average_top_k is not None:
        # An entry that is chosen goes with its place; all workers' come to all.
        size = int((entry + 4) * flat.numel() * config.average_top_k * config.workers / 2)
    network = Network(
        workers=config.workers,
        workers_per_node=config.workers_per_node,
        ethernet_gbit_s=config.ethernet_gbit_s,
        pcie_gbyte_s=config.pcie_gbyte_s,
    )
    return all_reduce_s(size, network, config.all_reduce)
