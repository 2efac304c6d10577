"""AsySGD: asynchronous SGD, the method that AsySVRG is compared with (HUO 2.4).

server     w <- w - eta_t (v + λw)            eta_t = eta / (1 + eta λ t)
worker     v = 1/b Σ ∇φ_i(w), b random samples, at the w of its last answer

The decay λw is the server's, with its own w, so that v is as sparse as the samples are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raylab.algorithms.server.parts import Phase, Task, Tensors, add_message, as_vector
from raylab.algorithms.server.primal_rules import PrimalServer, PrimalWorker
from raylab.algorithms.server.settings import ServerSettings
from raylab.algorithms.server.step_sizes import sgd_eta
from raylab.problems.objective import Vector

__all__ = ["AsySGDServer", "AsySGDWorker"]


class AsySGDServer(PrimalServer):
    """The server of AsySGD."""

    def __init__(self, settings: ServerSettings, w0: Vector) -> None:
        super().__init__(settings, w0)
        self._phase = Phase(number=0, kind="steps")
        self._updates = 0

    def apply(self, worker: int, message: Tensors, staleness: int) -> None:  # noqa: ARG002
        """Take one step of SGD."""
        strength = self.settings.strength
        eta = sgd_eta(self.eta, strength, self._updates)
        self._updates += 1
        w = self.writable()
        with np.errstate(over="ignore", invalid="ignore"):
            w *= 1 - eta * strength
            add_message(message, -eta, w)

    def report(self) -> dict[str, Any]:
        """Return the step of now."""
        return {"eta": sgd_eta(self.eta, self.settings.strength, self._updates)}

    def save(self) -> dict[str, Any]:
        """Return all that the server is."""
        return super().save() | {"updates": self._updates}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        super().restore(saved)
        self._updates = saved["updates"]


class AsySGDWorker(PrimalWorker):
    """A worker of AsySGD."""

    def work(self, task: Task, answer: Tensors, piece: int) -> None:  # noqa: ARG002
        """Compute the mean gradient of a batch."""
        rows = self._draw(task.number)
        self._message = self._mean_gradient(rows, as_vector(answer[0]))
        self._samples = len(rows)
