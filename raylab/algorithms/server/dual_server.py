"""The server of methods with duals: the two halves of the primal-dual relation, kept together.

    w = 1/(λn) Σ α_i                                                                 (3.3)

A message changes α on its worker and w on the server by the same amount. The worker waits for the
server's word before it changes α. The server keeps apart what each worker has put into w,

    w = Σ_k g_k        g_k = 1/(λn) Σ_{i of worker k} α_i

so that the relation can be looked at worker by worker, each at its own moment, and so that what a
lost worker has applied since its state was last kept can be taken back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raylab.algorithms.server.base_rules import CertificatePart, ServerCore
from raylab.algorithms.server.parts import Tensors, add_message, as_tensor, as_vector
from raylab.algorithms.server.settings import ServerSettings
from raylab.errors import ConfigError
from raylab.problems.objective import Vector

__all__ = ["DualServer"]


class DualServer(ServerCore):
    """A server of workers with duals.

    Args:
        settings: of the run.
        w0: zero, as α is.

    Raises:
        ConfigError: w0 is not zero.
    """

    def __init__(self, settings: ServerSettings, w0: Vector) -> None:
        if np.any(w0):
            raise ConfigError(
                f"{settings.method} begins with w = Σ α_i/(λn) = 0, but got w0 of norm "
                f"{float(np.linalg.norm(w0)):.3g}: use asysvrg, or a problem whose w begins at 0"
            )
        super().__init__(settings, w0)
        self._told = (math.nan, torch.empty(0))
        """The step, and as it is told to workers."""
        self._places: Tensor | None = None
        """That the last message has changed; None: any."""
        self._shares: dict[int, Vector] = {}
        """g_k by worker."""
        self._begun: dict[int, Vector] = {}
        """g_k where the worker's process began."""
        self._kept: dict[int, dict[int, Vector]] = {}
        """g_k by worker and step of the checkpoint, the newest two."""
        self._marks: dict[int, dict[int, Vector]] = {}
        """g_k by certificate and worker."""
        self._asked: dict[int, Vector] = {}
        """g_k when the worker made its part of the newest certificate."""
        self._newest = 0
        self._good: int | None = None
        self._disturbed = -1
        """The newest certificate that a loss may have been in the middle of."""

    def answer(self, worker: int) -> Tensors:  # noqa: ARG002
        """Return w, and the step that the duals are moved by."""
        eta, step = self._told
        if eta != self.eta:
            step = torch.tensor([self.eta], dtype=torch.float64)
            self._told = (self.eta, step)
        return (as_tensor(self._w), step)

    def apply(self, worker: int, message: Tensors, staleness: int) -> None:  # noqa: ARG002
        """Move w and the worker's share of it."""
        with np.errstate(over="ignore", invalid="ignore"):
            add_message(message, self.scale(), self.writable(), self._share(worker))
        self._places = message[0] if len(message) == 2 else None

    def changed(self) -> Tensor | None:
        """Return which coordinates the last message has changed; None: any."""
        return self._places

    def scale(self) -> float:
        """Return what a message is multiplied by: 1/(λn) where it is a change of Σ α."""
        return 1 / self.settings.lambda_n

    # ----------------------------------------------------------------- certificates

    def measure(self, parts: Mapping[int, CertificatePart], answer: Tensors) -> dict[str, float]:
        """Return the sums over the coordinates, those of the relation among them.

        Each g_k is compared at the moment of the worker's part, when no message of it is under
        way; so those of others are counted as they should be.
        """
        measured = super().measure(parts, answer)
        workers = sorted(parts)
        with np.errstate(over="ignore", invalid="ignore"):
            error = 0.0
            for worker in workers:
                share = self._asked[worker]
                dual = as_vector(parts[worker].tensors["dual_sum"]) / self.settings.lambda_n
                error += float(np.sum((share - dual) ** 2))
                measured[f"share-{worker}"] = float(share @ share)
            tensors = [parts[worker].tensors for worker in workers]
            total = np.sum(
                [as_vector(t.get("feasible_sum", t["dual_sum"])) for t in tensors], axis=0
            )
            point = total / self.settings.lambda_n
            return {**measured, "relation": error, "point": float(point @ point)}

    def figures(
        self, parts: Mapping[int, CertificatePart], measured: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the figures, with `relation`: how far (3.3) is from holding, relatively."""
        figures = super().figures(parts, measured)
        shares = [measured[f"share-{worker}"] for worker in parts]
        size = math.sqrt(max(measured["w"], *shares))
        error = math.sqrt(measured["relation"])
        figures["relation"] = error / size if size > 0 else error
        return figures

    def _dual(self, sums: Mapping[str, float], measured: Mapping[str, float]) -> float | None:
        if "conjugates" not in sums or not self.settings.convex:
            return None
        return (
            -sums["conjugates"] / self.settings.n - self.settings.strength / 2 * measured["point"]
        )

    def accept(self) -> None:
        """The certificate of now is good."""
        self._good = self._newest

    def _comparable(self) -> dict[str, float]:
        return {} if self._newest <= self._disturbed else self._best

    # ----------------------------------------------------------------- back and forth

    def mark(self, worker: int, number: int) -> None:
        """Remember g_k for a certificate."""
        self._newest = number
        share = self._share(worker).copy()
        self._asked[worker] = share
        if self.settings.keeps_marks:
            self._marks.setdefault(number, {})[worker] = share
            needed = (number, self._good)
            self._marks = {n: m for n, m in self._marks.items() if n in needed}

    def rewind(self, number: int | None) -> None:
        """Go back to the marks of a certificate, and halve the step."""
        marks = {} if number is None else self._marks.get(number, {})
        if any(worker not in marks for worker in self._shares):
            # What was best is out of reach.
            self._best = {}
        for worker in self._shares:
            self._set(worker, marks.get(worker, self._begun.get(worker)))
        self._add_up()
        self.halve()

    def kept(self, worker: int, step: int) -> None:
        """Remember g_k for a checkpoint."""
        kept = self._kept.setdefault(worker, {})
        kept[step] = self._share(worker).copy()
        for old in sorted(kept)[:-2]:
            del kept[old]

    def take_back(self, worker: int, step: int | None) -> None:
        """Let a lost worker's share be what it was at a checkpoint.

        Raises:
            KeyError: nothing of the worker was kept for that step.
        """
        kept, share = self._kept.pop(worker, {}), None
        if step is not None:
            share = kept[step]
            # What was kept later is lost with the worker, and would crowd this out.
            self._kept[worker] = {at: each for at, each in kept.items() if at <= step}
        self._begun[worker] = np.zeros(self.settings.dim) if share is None else share
        for marks in self._marks.values():
            marks.pop(worker, None)
        # The figures will rise, and it will not be the step's fault. The next certificate may
        # have been asked for already.
        self._disturbed = self._newest + 1
        self._set(worker, share)
        self._add_up()

    def adopt(self, dual_sums: Mapping[int, Vector], step: int) -> None:
        """Let the workers be these, each with this Σ α of the samples that it now has.

        For workers that have been added or removed: the samples and their duals have moved between
        them, and no message is under way. What was marked or kept before is forgotten.

        Args:
            dual_sums: by worker.
            step: of the checkpoint that the duals are from: a worker that is lost before it has
                kept anything goes back to it.
        """
        self._marks, self._asked, self._good = {}, {}, None
        self._shares = {k: v / self.settings.lambda_n for k, v in dual_sums.items()}
        self._begun = {k: v.copy() for k, v in self._shares.items()}
        self._kept = {k: {step: v.copy()} for k, v in self._shares.items()}
        self._add_up()

    def save(self) -> dict[str, Any]:
        """Return all that the server is, with the shares that workers have last kept."""
        kept = {
            worker: max(self._kept.get(worker, {0: self._begun_of(worker)}).items())
            for worker in self._shares
        }
        shares = {worker: as_tensor(share.copy()) for worker, (_, share) in kept.items()}
        if all(np.array_equal(share, self._shares[k]) for k, (_, share) in kept.items()):
            # In rounds all workers keep their state at one w: that one, with the rounding of the
            # way it came, so that a run that goes on from here is the same to the last bit.
            total = self._w
        else:
            total = np.sum([share for _, share in kept.values()], axis=0)
        return self._save_core() | {
            "w": as_tensor(np.array(total)),
            "shares": shares,
            "steps": {worker: step for worker, (step, _) in kept.items()},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        self._restore_core(saved)
        self._shares = {k: as_vector(v).copy() for k, v in saved["shares"].items()}
        self._begun = {k: v.copy() for k, v in self._shares.items()}
        self._kept = {k: {saved["steps"][k]: v.copy()} for k, v in self._shares.items()}

    def _share(self, worker: int) -> Vector:
        if worker not in self._shares:
            self._shares[worker] = np.zeros(self.settings.dim)
        return self._shares[worker]

    def _begun_of(self, worker: int) -> Vector:
        begun = self._begun.get(worker)
        return np.zeros(self.settings.dim) if begun is None else begun

    def _set(self, worker: int, share: Vector | None) -> None:
        self._shares[worker] = np.zeros(self.settings.dim) if share is None else share.copy()

    def _add_up(self) -> None:
        # Anew, and not by differences: what they would leave of rounding, or of an overflow, stays.
        self.become(np.sum([np.zeros(self.settings.dim), *self._shares.values()], axis=0))
