"""A configuration becomes a run of the parameter server under virtual time, and its folder.

No Ray, no actors: the loops and rules of a real run in this process, under `raylab.simulator`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from raylab.algorithms.server.rule_factory import ServerSettings, figure, notes
from raylab.algorithms.server.stragglers import check_workers
from raylab.algorithms.server.stragglers import parse as parse_straggler
from raylab.config import SimulationConfig
from raylab.drivers.kept import write_run
from raylab.drivers.server.numbers import (
    Limits,
    came_to,
    ends,
    first_w,
    limits,
    resolved,
    with_facts,
    workers_of,
)
from raylab.drivers.server.workload import Workload, check_needs, facts_of, workload
from raylab.errors import ConfigError
from raylab.records import RunFolder, Storage, new_run_name
from raylab.report import Progress
from raylab.simulator import Timing, simulate

__all__ = ["planned_simulations", "simulate_run"]


def planned_simulations(config: SimulationConfig) -> list[SimulationConfig]:
    """Return the runs that a configuration asks for, one for each number of workers.

    Several go into a folder of their own, STORAGE/NAME/workers-K.

    Raises:
        ConfigError: a number of workers stands twice.
    """
    asked = config.workers or workers_of(config.method)
    name = config.name or new_run_name(f"{config.method}-simulated")
    if isinstance(asked, int) or len(asked) == 1:
        workers = asked if isinstance(asked, int) else asked[0]
        return [config.model_copy(update={"workers": workers, "name": name})]
    if len(set(asked)) < len(asked):
        raise ConfigError(f"workers must be different numbers, but got {asked}")
    storage = Storage.at(config.storage).child(name).uri
    return [
        config.model_copy(
            update={"workers": each, "storage": storage, "name": f"workers-{each}"},
        )
        for each in asked
    ]


def simulate_run(config: SimulationConfig, *, progress: bool) -> dict[str, Any]:
    """Run what `config` says, with one number of workers, and return the summary.

    Args:
        config: of the run, as `planned_simulations` returns it.
        progress: show progress on standard error.

    Raises:
        InputError: the configuration does not fit together, or the data.
        RaylabError: the run failed.
    """
    if not isinstance(config.workers, int) or config.name is None:
        raise ConfigError("a simulation must have a name and one number of workers")
    began = time.perf_counter()
    check_workers(parse_straggler(config.straggler or "none", config.seed), config.workers)
    limit = limits(config.epochs, config.messages, config.tolerance, config.certify_every)
    work = workload(
        config.problem,
        config.data,
        strength=config.strength,
        seed=config.seed,
        **config.options,
    )
    settings = _settings(config, work.n, max(1, work.dim))
    check_needs(config.problem, settings.traits)
    with RunFolder(Storage.at(config.storage), config.name) as folder:
        return _simulated(folder, config, limit, work, settings, began=began, progress=progress)


def _simulated(
    folder: RunFolder,
    config: SimulationConfig,
    limit: Limits,
    work: Workload,
    settings: ServerSettings,
    *,
    began: float,
    progress: bool,
) -> dict[str, Any]:
    """Simulate, and write what came out of it into the folder."""
    supplies = work.supplies(settings.workers)
    title = f"{settings.traits.title} {work.title} K={config.workers}, simulated"
    with Progress(title, math.ceil(limit.epochs), enabled=progress) as bar:
        objectives = [make() for make in supplies.values()]
        facts = {k: facts_of(objective) for k, objective in enumerate(objectives)}
        settings = with_facts(settings, facts)
        written = {
            **config.model_dump(exclude={"resolved"}),
            "options": work.options,
            "data": work.data or work.n,
            "resolved": resolved(settings),
        }
        folder.write_config(written)
        for note in notes(settings):
            bar.say(f"note: {note}")

        def show(row: Mapping[str, Any]) -> None:
            bar.show(min(math.ceil(limit.epochs), int(row["epoch"])), [row])

        found = simulate(
            settings,
            objectives,
            straggler=parse_straggler(config.straggler or "none", config.seed),
            timing=_timing(config),
            ends=ends(limit, settings.n, figure(settings)),
            w0=first_w(settings, facts[0]),
            on_row=show,
        )
    figures = {
        **came_to(found.rows, found.ended_by, figure(settings)),
        "clock": "virtual",
        "simulated_in_s": time.perf_counter() - began,
        "deaths": found.deaths,
    }
    return write_run(folder, found.rows, found.model, written, figures).summary


def _settings(config: SimulationConfig, n: int, dim: int) -> ServerSettings:
    """Return what is known before the objectives are: the rest stands in no other's way."""
    return ServerSettings(
        method=config.method,
        workers=config.workers if isinstance(config.workers, int) else 1,
        n=n,
        dim=dim,
        strength=config.strength,
        smoothness=1.0,
        eta=config.eta,
        local_steps=config.local_steps,
        inner=config.inner,
        batch=config.batch,
        broadcast=config.broadcast,
        delta=config.delta,
        sampling=config.sampling,
        pretrain=config.pretrain,
        seed=config.seed,
    )


def _timing(config: SimulationConfig) -> Timing:
    # Several servers have a link each. A message waits until all say that their slice is there, and
    # they apply it when the first has told them to: twice as far, both ways.
    servers = config.servers
    return Timing(
        sample_s=config.sample_s,
        latency_s=config.latency_s * (1 if servers == 1 else 2),
        bytes_per_s=config.bandwidth * servers,
        apply_s=config.apply_s / servers,
        detect_s=config.detect_s,
        restart_s=config.restart_s,
    )
