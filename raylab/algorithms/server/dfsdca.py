"""dfSDCA: dual-free SDCA, one sample after the other (HUO alg. 5).

    κ = ∇φ_i(w) + α_i        α_i <- α_i - ηλn κ        w <- w - ηκ

Serial: one worker makes H steps on a w of its own between two messages, which are Σ Δα.
"""

from __future__ import annotations

import numpy as np

from raylab.algorithms.server.dual_server import DualServer
from raylab.algorithms.server.dual_worker import DualWorker
from raylab.algorithms.server.parts import Task, Tensors, as_message, as_vector
from raylab.problems.objective import LinearObjective, Rows, Vector

__all__ = ["DfSDCAServer", "DfSDCAWorker"]


class DfSDCAServer(DualServer):
    """The server of dfSDCA, which adds up what its worker has done."""


class DfSDCAWorker(DualWorker):
    """The worker of dfSDCA."""

    def work(self, task: Task, answer: Tensors, piece: int) -> None:  # noqa: ARG002
        """Make H steps."""
        rows = self._ordered_rows(task.number)
        w, eta = as_vector(answer[0]), float(as_vector(answer[1])[0])
        with np.errstate(over="ignore", invalid="ignore"):
            if isinstance(self.objective, LinearObjective):
                touched, change, total = self.objective.dual_free_pass(w, self.duals, rows, eta)
            else:
                touched, change, total = self._steps(w, rows, eta)
        self._change = (touched, change)
        self._message = as_message(total, self.settings.dim)
        self._samples = len(rows)

    def _steps(self, start: Vector, rows: Rows, eta: float) -> tuple[Rows, Vector, Vector]:
        """Make the steps one by one, for objectives that have no pass of their own."""
        w = start.copy()
        touched = np.unique(rows)
        before = self.duals[touched]
        self._changing(touched)
        duals = self.duals
        for row in rows:
            one = np.array([row])
            kappa = self.objective.residuals(w, duals, one)
            duals[one] -= eta * self.settings.lambda_n * kappa
            step = self.objective.combine(one, kappa)
            if isinstance(step, tuple):
                w[step[0]] -= eta * step[1]
            else:
                w -= eta * step
        change = duals[touched] - before
        # Of α itself, so that no second one is needed; the change waits for `commit`.
        duals[touched] = before
        return touched, change, self.settings.lambda_n * (w - start)
