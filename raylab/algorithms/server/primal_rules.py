"""What the methods without duals share: SGD and SVRG in all their forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raylab.algorithms.server.base_rules import ServerCore
from raylab.algorithms.server.parts import (
    AskedPhase,
    Part,
    Task,
    Tensors,
    as_message,
    as_tensor,
    as_vector,
    losses_part,
)
from raylab.algorithms.server.sampling import Passes
from raylab.algorithms.server.settings import ServerSettings
from raylab.problems.objective import LinearObjective, Objective, Rows, Vector

__all__ = ["PrimalServer", "PrimalWorker"]


class PrimalServer(ServerCore):
    """A server whose w is all that there is: a rewind goes back to the last good certificate's."""

    def __init__(self, settings: ServerSettings, w0: Vector) -> None:
        super().__init__(settings, w0)
        self._begun = self._w.copy()
        self._certified = self._begun
        self._good = self._begun

    def measure(self, parts: Mapping[int, Any], answer: Tensors) -> dict[str, float]:
        """Return the certificate's sums, and remember what they are of."""
        self._certified = as_vector(answer[0])
        return super().measure(parts, answer)

    def accept(self) -> None:
        """The certificate of now is good."""
        self._good = self._certified

    def rewind(self, number: int | None) -> None:
        """Go back to the w of the last good certificate, and halve the step."""
        self.become(self._begun if number is None else self._good)
        self.halve()
        self._begin_again()

    def _begin_again(self) -> None:
        """Begin the method at the w of now."""

    def save(self) -> dict[str, Any]:
        """Return all that the server is."""
        return self._save_core()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        self._restore_core(saved)
        self._begun = self._certified = self._good = self._w.copy()


class PrimalWorker:
    """A worker that computes gradients of batches.

    Args:
        settings: of the run.
        objective: of its samples.
        worker: its number, which its draws are keyed by.
    """

    def __init__(self, settings: ServerSettings, objective: Objective, worker: int) -> None:
        self.settings = settings
        self.objective = objective
        self.worker = worker
        self._message: Tensors = ()
        self._samples = 0
        rows = objective.shard.rows
        self._passes = Passes(settings.seed, worker, rows, min(settings.message_samples, rows))
        # Of linear models the gradient is combined from numbers, and stays as sparse as its rows.
        self._linear = objective if isinstance(objective, LinearObjective) else None
        self._no_duals = None if self._linear is None else self._linear.zero_duals()

    def begin(self, phase: AskedPhase, opening: Tensors) -> None:
        """A phase begins."""

    def work(self, task: Task, answer: Tensors, piece: int) -> None:
        """Compute the message."""
        raise NotImplementedError

    def message(self) -> Tensors:
        """Return it."""
        return self._message

    def samples(self) -> int:
        """Return the gradients of single samples that it is made of."""
        return self._samples

    def commit(self) -> None:
        """The message is applied; a worker without duals is as it was."""

    def discard(self) -> None:
        """The message will never be applied."""

    def certify(self, answer: Tensors) -> Part:
        """Return the losses and the gradient of its samples."""
        return losses_part(self.objective, as_vector(answer[0]))

    def mark(self, number: int, good: int | None) -> None:
        """There is nothing to remember."""

    def rewind(self, number: int | None) -> None:
        """There is nothing to go back to."""

    def save(self) -> dict[str, Any]:
        """Return nothing: a worker is what its settings say."""
        return {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""

    # ----------------------------------------------------------------- for the methods

    def _draw(self, number: int) -> Rows:
        return np.sort(self._passes.take(number))

    def _mean_gradient(self, rows: Rows, at: Vector, less: Vector | None = None) -> Tensors:
        """Return the mean over `rows` of ∇φ_i(at), less ∇φ_i(less), as it travels."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self._linear is not None and self._no_duals is not None:
                slopes = self._linear.residuals(at, self._no_duals, rows)
                if less is not None:
                    slopes = slopes - self._linear.residuals(less, self._no_duals, rows)
                total = self._linear.combine(rows, slopes / len(rows))
                return as_message(total, self.settings.dim)
            gradient = self.objective.gradients(at, rows)
            if less is not None:
                gradient = gradient - self.objective.gradients(less, rows)
            return (as_tensor(gradient / len(rows)),)
