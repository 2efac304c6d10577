"""The methods of the parameter server under virtual time: settings and objectives become rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actors.server.ends import Ends
from actors.server.protocols import WorkerRule
from actors.server.staleness import Bound
from raylab.algorithms.server.rule_factory import ServerSettings, server_rule, worker_rule
from raylab.algorithms.server.rule_factory import bound as bound_of
from raylab.algorithms.server.stragglers import Straggler
from raylab.algorithms.server.stragglers import parse as parse_straggler
from raylab.errors import ConfigError
from raylab.problems.objective import Objective, Vector
from raylab.simulator.outcome import Simulated
from raylab.simulator.rules import run_rules
from raylab.simulator.timing import Event, Timing

__all__ = ["simulate"]


def simulate(
    settings: ServerSettings,
    objectives: Sequence[Objective],
    *,
    straggler: Straggler | str = "none",
    timing: Timing | None = None,
    ends: Ends,
    broadcast_every: int | None = None,
    bound: Bound | None = None,
    events: Sequence[Event] = (),
    w0: Vector | None = None,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> Simulated:
    """Run a method under virtual time.

    Args:
        settings: of the method.
        objectives: one a worker, in the order of their samples.
        straggler: what is wrong with the workers, or its text, with draws of the settings' seed.
        timing: how long things take; None: as `Timing` has it.
        ends: of the run.
        broadcast_every: T; None: as the settings have it.
        bound: of the staleness; None: as the settings have it.
        events: what happens on the way.
        w0: w to begin with; None: the objectives', or zero for methods with duals.
        on_row: told each row.

    Raises:
        ConfigError: the objectives are not one a worker, or nothing ends the run.
        RaylabError: nothing is under way, and the run is not over.
    """
    if len(objectives) != settings.workers:
        raise ConfigError(
            f"every worker needs an objective, but got {len(objectives)} for "
            f"workers={settings.workers}"
        )
    if w0 is None:
        w0 = np.zeros(settings.dim) if settings.traits.duals else objectives[0].initial()
    if isinstance(straggler, str):
        straggler = parse_straggler(straggler, settings.seed)
    if bound is None:
        given = bound_of(settings)
        bound = Bound(updates=given.updates, late=given.late)

    def worker(number: int) -> WorkerRule:
        return worker_rule(settings, objectives[number], number)

    return run_rules(
        server_rule(settings, w0),
        worker,
        settings.workers,
        ends,
        straggler=straggler,
        timing=timing,
        bound=bound,
        broadcast_every=settings.broadcast if broadcast_every is None else broadcast_every,
        epoch_samples=settings.n,
        events=events,
        on_row=on_row,
    )
