"""What all methods' servers have: w, the step, certificates and their judge.

    P(w) = 1/n Σ φ_i(w) + λ/2 |w|²                                                   (3.1)
    D(α) = -1/n Σ φ*_i(-α_i) - λ/2 |Σ α_i/(λn)|²                                     (3.2)

P(w) - D(α) bounds how far P(w) is from its least value for any pair w, α. A method without duals
has a pair too: α_i = -∇φ_i(w), with which the gap is |∇P(w)|²/(2λ) if the φ_i are convex.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from raylab.algorithms.server.parts import Phase, Tensors, as_tensor, as_vector
from raylab.algorithms.server.settings import ServerSettings
from raylab.algorithms.server.step_sizes import chosen_eta
from raylab.errors import NonFiniteLossError, RaylabError
from raylab.problems.objective import Vector

__all__ = ["CertificatePart", "ServerCore", "figure"]

_RISE = {"duality_gap": 4.0, "gradient_norm": 2.0}
"""A figure that many times the best is no noise; a gap is about a gradient norm squared."""
_NOISY_RISE = {"duality_gap": 64.0, "gradient_norm": 8.0}
"""Of SGD, whose figures stay noisy at a constant step."""
_OWN_REFERENCES = 2
"""To w where nobody else has it: the rule's, and that of the call that counts."""
_ROUNDING = 1e-12
_MOST_HALVINGS = 60


class CertificatePart(Protocol):
    """One worker's part, see `actors.server.protocols.Certificate`."""

    @property
    def values(self) -> Mapping[str, float]:
        """Sums over its samples."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Vectors to be added up."""
        ...


def figure(settings: ServerSettings) -> str:
    """Return which figure of the certificates says how good w is."""
    return "duality_gap" if settings.convex and settings.strength > 0 else "gradient_norm"


class ServerCore:
    """What the servers' rules share.

    Args:
        settings: of the run.
        w0: w to begin with, (dim,).
    """

    def __init__(self, settings: ServerSettings, w0: Vector) -> None:
        self.settings = settings
        self.eta = chosen_eta(settings)
        self.halvings = 0
        self._w = np.array(w0, dtype=np.float64)
        self._phase = Phase(number=0, kind="steps")
        self._best: dict[str, float] = {}
        self._first: dict[str, float] = {}

    # ----------------------------------------------------------------- w

    def phase(self) -> Phase:
        """Return what is asked for now."""
        return self._phase

    def opening(self) -> Tensors:
        """Return what a worker must know for the phase: nothing."""
        return ()

    def changed(self) -> Tensor | None:
        """Return which coordinates of w the last message has changed; None: any."""
        return None

    def close_phase(self) -> None:
        """End the phase of now."""

    def answer(self, worker: int) -> Tensors:  # noqa: ARG002
        """Return the w of now; nobody writes to it any more."""
        return (as_tensor(self._w),)

    def weights(self, answer: Tensors) -> dict[str, Tensor]:
        """Return the model that an answer is of."""
        w = answer[0]
        return {} if w is None else {"w": w}

    def writable(self) -> Vector:
        """Return w to write to: a copy, if somebody has the w of now.

        Whoever does has a reference to the array: as a vector of this process, or as a tensor on
        its memory, which may be on its way to a worker.
        """
        if sys.getrefcount(self._w) > _OWN_REFERENCES:
            self._w = self._w.copy()
        return self._w

    def become(self, w: Vector) -> None:
        """Let w be a vector, which nobody else writes to."""
        self._w = w

    # ----------------------------------------------------------------- certificates

    def certify(self, parts: Mapping[int, CertificatePart], answer: Tensors) -> dict[str, float]:
        """Return primal, dual, duality_gap, gradient_norm, and what else the workers sum up."""
        return self.figures(parts, self.measure(parts, answer))

    def measure(self, parts: Mapping[int, CertificatePart], answer: Tensors) -> dict[str, float]:
        """Return a certificate's sums over the coordinates, all of w's or a range of them."""
        w = as_vector(answer[0])
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = _total(parts, "gradient") / self.settings.n + self.settings.strength * w
            return {"w": float(w @ w), "gradient": float(gradient @ gradient)}

    def figures(
        self, parts: Mapping[int, CertificatePart], measured: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the certificate's figures of the sums over all coordinates."""
        settings = self.settings
        n, strength = settings.n, settings.strength
        sums: dict[str, float] = {}
        for part in parts.values():
            for name, value in part.values.items():
                sums[name] = sums.get(name, 0.0) + value
        loss = sums["losses"] / n
        primal = loss + strength / 2 * measured["w"]
        figures = {"primal": primal, "gradient_norm": math.sqrt(measured["gradient"])}
        dual = self._dual(sums, measured)
        if dual is not None:
            figures |= {"dual": dual, "duality_gap": primal - dual}
        elif settings.convex and strength > 0:
            gap = measured["gradient"] / (2 * strength)
            figures |= {"dual": primal - gap, "duality_gap": gap}
        figures["loss"] = loss
        # A worker all of whose targets are ±1 counts, though those of others may be quantities.
        if all("correct" in part.values for part in parts.values()):
            figures["accuracy"] = sums["correct"] / sums["samples"]
        return figures

    def judge(self, figures: Mapping[str, float]) -> str | None:
        """Tell why the step was too long: a figure is not finite, or has risen clearly.

        The figure is the duality gap. Where there is none, it is the gradient norm, and counts as
        risen only if the primal value has as well: it may grow on the way down of a loss that is
        not convex. Only a step that is "auto" is judged.

        Raises:
            NonFiniteLossError: of a given step, of a method without one, or after 60 halvings.
        """
        name = figure(self.settings)
        value, primal = figures[name], figures["primal"]
        if not (math.isfinite(value) and math.isfinite(primal)):
            if not self.settings.halves:
                raise NonFiniteLossError(
                    f"the primal value must stay finite, but it is {primal} and {name} is {value} "
                    + self._way_out()
                )
            return f"{name} is {value}"
        self._first = self._first or {name: value, "primal": primal}
        best = self._comparable()
        if self.settings.halves and best:
            noisy = not self.settings.traits.duals and self._phase.kind == "steps"
            most = (_NOISY_RISE if noisy else _RISE)[name] * best[name]
            floor = _ROUNDING * max(self._first[name], abs(primal))
            worse = name == "duality_gap" or primal > best["primal"] + _ROUNDING * abs(primal)
            if value > max(most, floor) and worse:
                return f"{name} rose from {best[name]:.3g} to {value:.3g}"
        self._best = {key: min(figures[key], best.get(key, math.inf)) for key in (name, "primal")}
        self.accept()
        return None

    def accept(self) -> None:
        """The certificate of now is good."""

    def report(self) -> dict[str, Any]:
        """Return the step."""
        return {"eta": self.eta} if self.settings.traits.stepped else {}

    def mark(self, worker: int, number: int) -> None:
        """Remember what a worker has applied; without duals it is nothing."""

    def kept(self, worker: int, step: int) -> None:
        """Remember what a worker has applied; without duals it is nothing."""

    def take_back(self, worker: int, step: int | None) -> None:
        """Undo what a lost worker has applied; without duals there is nothing to undo."""

    def halve(self) -> None:
        """Take half the step from here on.

        Raises:
            RaylabError: it does not help.
        """
        self.halvings += 1
        self.eta /= 2
        if self.halvings > _MOST_HALVINGS:
            raise RaylabError(
                f"halving eta {_MOST_HALVINGS} times must stop the rise of {figure(self.settings)},"
                f" but it is {self.eta:.3g} now: is the objective's gradient that of its loss?"
            )

    # ----------------------------------------------------------------- of each method

    def apply(self, worker: int, message: Tensors, staleness: int) -> None:
        """Apply one message."""
        raise NotImplementedError

    def rewind(self, number: int | None) -> None:
        """Go back to a certificate's state, and halve the step."""
        raise NotImplementedError

    def save(self) -> dict[str, Any]:
        """Return all that the server is."""
        raise NotImplementedError

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        raise NotImplementedError

    # ----------------------------------------------------------------- for the methods

    def _way_out(self) -> str:
        if self.settings.traits.stepped:
            return f'with eta={self.eta:.3g}: give a smaller eta, or "auto", which recovers'
        return f"with {self.settings.method}, which has no step: scale the columns of the data"

    def _comparable(self) -> dict[str, float]:
        """Return the best figures so far, none if the newest cannot be compared with them."""
        return self._best

    def _dual(
        self,
        sums: Mapping[str, float],  # noqa: ARG002
        measured: Mapping[str, float],  # noqa: ARG002
    ) -> float | None:
        """Return D(α) where workers keep α."""
        return None

    def _save_core(self) -> dict[str, Any]:
        return {
            "w": as_tensor(self._w.copy()),
            "eta": self.eta,
            "halvings": self.halvings,
            "best": dict(self._best),
            "first": dict(self._first),
        }

    def _restore_core(self, saved: Mapping[str, Any]) -> None:
        self.become(as_vector(saved["w"]).copy())
        self.eta = saved["eta"]
        self.halvings = saved["halvings"]
        self._best = dict(saved["best"])
        self._first = dict(saved["first"])


def _total(parts: Mapping[int, CertificatePart], name: str) -> Vector:
    total: Vector = np.sum(
        [as_vector(parts[worker].tensors[name]) for worker in sorted(parts)], axis=0
    )
    return total
