"""SGD_SVRG: SVRG from weights that SGD has trained for some passes (HUO 2.5.1).

SVRG is slow while w is far from where it will end; so a phase of AsySGD comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raylab.algorithms.server.asysvrg import AsySVRGServer, AsySVRGWorker
from raylab.algorithms.server.parts import Phase, Task, Tensors, add_message, as_vector
from raylab.algorithms.server.settings import ServerSettings
from raylab.algorithms.server.step_sizes import sgd_eta
from raylab.problems.objective import Vector

__all__ = ["SgdSvrgServer", "SgdSvrgWorker"]


class SgdSvrgServer(AsySVRGServer):
    """The server of SGD_SVRG."""

    def __init__(self, settings: ServerSettings, w0: Vector) -> None:
        super().__init__(settings, w0)
        self._updates = 0
        passes = settings.pretrain * settings.n
        self._pretraining = round(passes / settings.message_samples)
        if self._pretraining:
            self._phase = self._phase_of("steps", 0)

    def apply(self, worker: int, message: Tensors, staleness: int) -> None:
        """Take one step of SGD while these last, then of SVRG."""
        if self._phase.kind != "steps":
            super().apply(worker, message, staleness)
            return
        strength = self.settings.strength
        eta = sgd_eta(self.eta, strength, self._updates)
        self._updates += 1
        w = self.writable()
        with np.errstate(over="ignore", invalid="ignore"):
            w *= 1 - eta * strength
            add_message(message, -eta, w)

    def _begin_again(self) -> None:
        if self._phase.kind != "steps":
            super()._begin_again()

    def _phase_of(self, kind: str, number: int) -> Phase:
        if kind == "steps":
            return Phase(number=number, kind=kind, messages=self._pretraining)
        return super()._phase_of(kind, number)

    def save(self) -> dict[str, Any]:
        """Return all that the server is."""
        return super().save() | {"updates": self._updates}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        super().restore(saved)
        self._updates = saved["updates"]


class SgdSvrgWorker(AsySVRGWorker):
    """A worker of SGD_SVRG."""

    def work(self, task: Task, answer: Tensors, piece: int) -> None:
        """Compute the mean gradient of a batch for SGD, or what SVRG asks for."""
        if self._kind != "steps":
            super().work(task, answer, piece)
            return
        rows = self._draw(task.number)
        self._message = self._mean_gradient(rows, as_vector(answer[0]))
        self._samples = len(rows)
