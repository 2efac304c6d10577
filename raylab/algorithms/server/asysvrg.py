"""Distributed AsySVRG (HUO alg. 2, 3).

phase "full"     a round: workers send Σ ∇φ_i(w~) of their shards, w~ the w of now
phase "inner"    m messages   w <- w - η v                                           (2.32)
                 v = 1/b Σ (∇φ_i(w_stale) - ∇φ_i(w~)) + 1/n Σ ∇φ_i(w~) + λw          (2.33)

A worker sends the first sum alone, which is as sparse as its samples; the dense rest is the
server's own and is added there. The only difference to (2.33) is that λw is taken at the w of now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raylab.algorithms.server.parts import (
    AskedPhase,
    Phase,
    Task,
    Tensors,
    add_message,
    as_tensor,
    as_vector,
)
from raylab.algorithms.server.primal_rules import PrimalServer, PrimalWorker
from raylab.algorithms.server.settings import ServerSettings
from raylab.problems.objective import Objective, Vector

__all__ = ["AsySVRGServer", "AsySVRGWorker"]


class AsySVRGServer(PrimalServer):
    """The server of AsySVRG."""

    def __init__(self, settings: ServerSettings, w0: Vector) -> None:
        super().__init__(settings, w0)
        self._anchor: Vector = self._w
        self._full: Vector = np.zeros_like(self._w)
        self._phase = self._full_phase(0)

    def opening(self) -> Tensors:
        """Return w~, for the messages of an inner phase."""
        return (as_tensor(self._anchor),) if self._phase.kind == "inner" else ()

    def apply(self, worker: int, message: Tensors, staleness: int) -> None:  # noqa: ARG002
        """Add to the full gradient, or take one step (2.32)."""
        if self._phase.kind == "full":
            add_message(message, 1 / self.settings.n, self._full)
            return
        w = self.writable()
        with np.errstate(over="ignore", invalid="ignore"):
            w *= 1 - self.eta * self.settings.strength
            w -= self.eta * self._full
            add_message(message, -self.eta, w)

    def close_phase(self) -> None:
        """Go from the full gradient to the inner steps, and back."""
        number = self._phase.number + 1
        if self._phase.kind != "full":
            self._phase = self._full_phase(number)
            return
        self._anchor = self._w
        self._phase = Phase(number=number, kind="inner", messages=self.settings.inner_messages)

    def _full_phase(self, number: int) -> Phase:
        self._full = np.zeros_like(self._w)
        return Phase(number=number, kind="full", gather=True, messages=1)

    def _begin_again(self) -> None:
        self._phase = self._full_phase(self._phase.number + 1)

    def save(self) -> dict[str, Any]:
        """Return all that the server is."""
        return super().save() | {
            "anchor": as_tensor(self._anchor.copy()),
            "full": as_tensor(self._full.copy()),
            "phase": {"number": self._phase.number, "kind": self._phase.kind},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        super().restore(saved)
        self._phase = self._phase_of(saved["phase"]["kind"], saved["phase"]["number"])
        self._anchor = as_vector(saved["anchor"]).copy()
        if self._phase.kind != "full":
            # Of a round, nothing has been applied: it begins anew.
            self._full = as_vector(saved["full"]).copy()

    def _phase_of(self, kind: str, number: int) -> Phase:
        if kind == "full":
            return self._full_phase(number)
        return Phase(number=number, kind=kind, messages=self.settings.inner_messages)


class AsySVRGWorker(PrimalWorker):
    """A worker of AsySVRG."""

    def __init__(self, settings: ServerSettings, objective: Objective, worker: int) -> None:
        super().__init__(settings, objective, worker)
        self._kind = ""
        self._anchor: Vector = np.zeros(0)

    def begin(self, phase: AskedPhase, opening: Tensors) -> None:
        """Take w~ from the opening of an inner phase."""
        self._kind = phase.kind
        if phase.kind == "inner":
            self._anchor = as_vector(opening[0])

    def work(self, task: Task, answer: Tensors, piece: int) -> None:  # noqa: ARG002
        """Compute the shard's gradient, or the difference of a batch's."""
        w = as_vector(answer[0])
        if self._kind == "full":
            with np.errstate(over="ignore", invalid="ignore"):
                self._message = (as_tensor(self.objective.gradients(w)),)
            self._samples = self.objective.shard.rows
            return
        rows = self._draw(task.number)
        self._message = self._mean_gradient(rows, w, less=self._anchor)
        self._samples = 2 * len(rows)
