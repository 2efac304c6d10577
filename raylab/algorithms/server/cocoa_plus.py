"""CoCoA+ with SDCA as its local solver (Ma et al. 2015; the baseline of HUO 3.5).

Synchronous rounds: every worker makes H steps of SDCA on its subproblem, whose quadratic term is
sigma' = K times (3.4)'s, and the server adds up (γ = 1) what all have found,

    w <- w + 1/(λn) Σ_k Σ_i Δα_i x_i

which is safe for any data: K workers that agree would otherwise go K times too far.
"""

from __future__ import annotations

from raylab.algorithms.server.dual_server import DualServer
from raylab.algorithms.server.parts import Phase
from raylab.algorithms.server.sdca import SDCAWorker
from raylab.algorithms.server.settings import ServerSettings
from raylab.problems.objective import LinearObjective, Vector

__all__ = ["CoCoAPlusServer", "CoCoAPlusWorker"]


class CoCoAPlusServer(DualServer):
    """The server of CoCoA+."""

    def __init__(self, settings: ServerSettings, w0: Vector) -> None:
        super().__init__(settings, w0)
        self._phase = Phase(number=0, kind="rounds", gather=True)


class CoCoAPlusWorker(SDCAWorker):
    """A worker of CoCoA+."""

    def __init__(self, settings: ServerSettings, objective: LinearObjective, worker: int) -> None:
        super().__init__(settings, objective, worker)
        self.sigma = float(settings.workers)
