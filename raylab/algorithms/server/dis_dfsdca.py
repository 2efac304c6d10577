"""Dis-dfSDCA: distributed asynchronous dual-free SDCA (HUO alg. 6, 7).

server     w <- w - η v                                                              (3.5)
worker     for H distinct samples, all at the w of the last answer:
           κ_i = ∇φ_i(w) + α_i                                                       (3.6)
           α_i <- α_i - ηλn κ_i                                                      (3.7)
           v = Σ κ_i                                                                 (3.8)

Algorithm 7 has n_k in place of n; only n, all samples, keeps w = 1/(λn) Σ α_i (3.3). α is moved
when the server says that v is applied. With T > 0 the server sends w to all after every T updates,
and a worker computes its H samples in a few pieces, each at the newest w that has come; no sample
is in two of them.
"""

from __future__ import annotations

import numpy as np

from raylab.algorithms.server.dual_server import DualServer
from raylab.algorithms.server.dual_worker import DualWorker
from raylab.algorithms.server.parts import Phase, Task, Tensors, as_message, as_vector
from raylab.algorithms.server.sampling import Sampler
from raylab.algorithms.server.settings import ServerSettings
from raylab.problems.objective import DualObjective, Rows, Vector

__all__ = ["DisDfSDCAServer", "DisDfSDCAWorker"]


class DisDfSDCAServer(DualServer):
    """The server of Dis-dfSDCA (alg. 6)."""

    def __init__(self, settings: ServerSettings, w0: Vector) -> None:
        super().__init__(settings, w0)
        self._phase = Phase(number=0, kind="steps", pieces=settings.pieces)

    def scale(self) -> float:
        """Return -η (3.5)."""
        return -self.eta


class DisDfSDCAWorker(DualWorker):
    """A worker of Dis-dfSDCA (alg. 7)."""

    def __init__(self, settings: ServerSettings, objective: DualObjective, worker: int) -> None:
        super().__init__(settings, objective, worker)
        self._sampler = Sampler(settings, objective, worker)
        self._pieces: list[tuple[Rows, Vector | None]] = []
        self._kappas: list[Vector] = []
        self._eta = 0.0

    def work(self, task: Task, answer: Tensors, piece: int) -> None:
        """Compute the residuals of one piece's samples."""
        w = as_vector(answer[0])
        with np.errstate(over="ignore", invalid="ignore"):
            if piece == 0:
                self._draw(task.number, w)
                self._eta = float(as_vector(answer[1])[0])
            rows, _ = self._pieces[piece]
            self._kappas.append(self.objective.residuals(w, self.duals, rows))
        self._samples += len(rows)

    def message(self) -> Tensors:
        """Return v; the change of the duals waits for `commit`."""
        if len(self._pieces) == 1:
            (rows, _), kappas = self._pieces[0], self._kappas[0]
        else:
            rows = np.concatenate([rows for rows, _ in self._pieces])
            kappas = np.concatenate(self._kappas)
        with np.errstate(over="ignore", invalid="ignore"):
            self._sampler.seen(rows, kappas)
            factors = [f for _, f in self._pieces if f is not None]
            if factors:
                kappas = (kappas.T * np.concatenate(factors)).T
            self._change = (rows, -self._eta * self.settings.lambda_n * kappas)
            v = self.objective.combine(rows, kappas)
        return as_message(v, self.settings.dim)

    def _draw(self, number: int, w: Vector) -> None:
        rows, factors, looked_at = self._sampler.draw(number, w, self.duals)
        pieces = self.settings.pieces
        if pieces == 1:
            self._pieces, self._kappas, self._samples = [(rows, factors)], [], looked_at
            return
        parts = np.array_split(rows, pieces)
        self._kappas = []
        self._samples = looked_at
        split = [None] * pieces if factors is None else np.array_split(factors, pieces)
        self._pieces = list(zip(parts, split, strict=True))
