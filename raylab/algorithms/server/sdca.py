"""SDCA: stochastic dual coordinate ascent (HUO alg. 4).

    Δα_i = argmax -1/n φ*_i(-(α_i + Δα_i)) - λ/2 |w + Δα_i x_i/(λn)|²                (3.4)
    α_i <- α_i + Δα_i        w <- w + Δα_i x_i/(λn)

Serial: one worker makes H steps on a w of its own between two messages, which are Σ Δα_i x_i.
"""

from __future__ import annotations

import numpy as np

from raylab.algorithms.server.dual_server import DualServer
from raylab.algorithms.server.dual_worker import DualWorker
from raylab.algorithms.server.parts import Task, Tensors, as_message, as_vector
from raylab.algorithms.server.settings import ServerSettings
from raylab.problems.objective import LinearObjective

__all__ = ["SDCAServer", "SDCAWorker"]


class SDCAServer(DualServer):
    """The server of SDCA, which adds up what its worker has done."""


class SDCAWorker(DualWorker):
    """The worker of SDCA, and the local solver of CoCoA+ with its sigma'."""

    objective: LinearObjective
    sigma = 1.0
    """What (3.4)'s quadratic term is multiplied by."""

    def __init__(self, settings: ServerSettings, objective: LinearObjective, worker: int) -> None:
        super().__init__(settings, objective, worker)

    def work(self, task: Task, answer: Tensors, piece: int) -> None:  # noqa: ARG002
        """Maximise H coordinates one after the other."""
        rows = self._ordered_rows(task.number)
        w = as_vector(answer[0])
        with np.errstate(over="ignore", invalid="ignore"):
            touched, change, total = self.objective.coordinate_ascent(
                w, self.duals, rows, self.sigma
            )
        self._change = (touched, change)
        self._message = as_message(total, self.settings.dim)
        self._samples = len(rows)
