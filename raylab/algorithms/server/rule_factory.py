"""The methods of the parameter server: from a name and its numbers to the rules of both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from raylab.algorithms.server.asysgd import AsySGDServer, AsySGDWorker
from raylab.algorithms.server.asysvrg import AsySVRGServer, AsySVRGWorker
from raylab.algorithms.server.base_rules import figure
from raylab.algorithms.server.cocoa_plus import CoCoAPlusServer, CoCoAPlusWorker
from raylab.algorithms.server.dfsdca import DfSDCAServer, DfSDCAWorker
from raylab.algorithms.server.dis_dfsdca import DisDfSDCAServer, DisDfSDCAWorker
from raylab.algorithms.server.dual_server import DualServer
from raylab.algorithms.server.dual_worker import DualWorker
from raylab.algorithms.server.method_table import SERVER_METHODS, ServerMethod
from raylab.algorithms.server.primal_rules import PrimalServer, PrimalWorker
from raylab.algorithms.server.sdca import SDCAServer, SDCAWorker
from raylab.algorithms.server.settings import ServerSettings
from raylab.algorithms.server.sgd_svrg import SgdSvrgServer, SgdSvrgWorker
from raylab.algorithms.server.step_sizes import auto_eta, chosen_eta, theory_eta
from raylab.algorithms.server.step_sizes import notes as step_notes
from raylab.algorithms.server.unused import unused
from raylab.errors import ConfigError
from raylab.problems.objective import DualObjective, LinearObjective, Objective, Vector

__all__ = [
    "SERVER_METHODS",
    "ServerMethod",
    "ServerSettings",
    "StalenessBound",
    "auto_eta",
    "bound",
    "chosen_eta",
    "figure",
    "notes",
    "server_rule",
    "theory_eta",
    "worker_rule",
]

_SERVERS: dict[str, Callable[[ServerSettings, Vector], Any]] = {
    "asysgd": AsySGDServer,
    "sgd_svrg": SgdSvrgServer,
    "asysvrg": AsySVRGServer,
    "dis_dfsdca": DisDfSDCAServer,
    "dfsdca": DfSDCAServer,
    "sdca": SDCAServer,
    "cocoa_plus": CoCoAPlusServer,
}
_WORKERS: dict[str, Callable[[ServerSettings, Any, int], Any]] = {
    "asysgd": AsySGDWorker,
    "sgd_svrg": SgdSvrgWorker,
    "asysvrg": AsySVRGWorker,
    "dis_dfsdca": DisDfSDCAWorker,
    "dfsdca": DfSDCAWorker,
    "sdca": SDCAWorker,
    "cocoa_plus": CoCoAPlusWorker,
}
_NEEDS: dict[str, tuple[type, str]] = {
    "gradient": (Objective, "losses and gradients of rows (Objective)"),
    "residual": (DualObjective, "a dual for each sample, and residuals (DualObjective)"),
    "linear": (LinearObjective, "linear models, whose coordinates are maximised (LinearObjective)"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StalenessBound:
    """How stale a message may be, see `actors.server.staleness.Bound`."""

    updates: int | None
    late: Literal["wait", "refresh"]


def server_rule(settings: ServerSettings, w0: Vector) -> PrimalServer | DualServer:
    """Return the server's half of a method.

    Args:
        settings: of the run.
        w0: w to begin with, (dim,); zero for a method with duals.

    Raises:
        ConfigError: w0 does not fit.
    """
    if w0.shape != (settings.dim,):
        raise ConfigError(f"w0 must have the shape ({settings.dim},), but got {w0.shape}")
    rule: PrimalServer | DualServer = _SERVERS[settings.method](settings, w0)
    return rule


def worker_rule(
    settings: ServerSettings, objective: Objective, worker: int
) -> PrimalWorker | DualWorker:
    """Return one worker's half of a method.

    Args:
        settings: of the run.
        objective: of the worker's samples.
        worker: its number, from 0.

    Raises:
        ConfigError: the method needs more of the objective than it has.
    """
    needed, words = _NEEDS[settings.traits.needs]
    if not isinstance(objective, needed):
        can = [m.name for m in SERVER_METHODS.values() if isinstance(objective, _NEEDS[m.needs][0])]
        raise ConfigError(
            f"{settings.method} needs an objective with {words}, but {type(objective).__name__} "
            f"has not: use one of {', '.join(can)}"
        )
    rule: PrimalWorker | DualWorker = _WORKERS[settings.method](settings, objective, worker)
    return rule


def notes(settings: ServerSettings) -> list[str]:
    """Return what a user should know of the settings before a run."""
    return [*step_notes(settings), *unused(settings)]


def bound(settings: ServerSettings) -> StalenessBound:
    """Return how stale messages may be, and what becomes of those that would be staler.

    Methods with duals have changed their worker before the server knows: faster workers wait.
    Of the others a message that comes too late is refused, and its worker computes anew.
    """
    return StalenessBound(updates=settings.delta_updates, late=settings.traits.late)
