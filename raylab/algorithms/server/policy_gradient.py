"""Asynchronous policy gradients: workers play episodes and push gradients at the w they know of.

A worker plays at the w of its answer, then pushes `reuse` gradients of what it has played, each at
the newest w: of the clipped surrogate

    -1/N Σ min(r_t A_t, clip(r_t, 1-ε, 1+ε) A_t),     r_t = π_w(a_t|s_t) / π_played(a_t|s_t)

(Schulman et al. 2017, eq. 7), where r_t answers for all that has happened to w since, by this
worker or another; plus the squared error of the value function, minus the policy's entropy. A_t is
the generalised advantage estimate (Schulman et al. 2016, eq. 16). The server applies what comes,
however stale, with Adam. reuse = 1 is the plain actor-critic of Mnih et al. 2016.

An environment whose episode ends waits for the others of its worker, up to `horizon` steps: a
message takes as long as its episodes do, and workers overtake each other without being told to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from raylab.algorithms.server.parts import Phase, Tensors
from raylab.errors import ConfigError, NonFiniteLossError
from raylab.problems.actor_critic import ActorCritic
from raylab.problems.cartpole import ACTIONS, MOST_RETURN, SIZE

__all__ = ["LAST_EPISODES", "PolicyServer", "PolicySettings"]

LAST_EPISODES = 100
"""Training episodes, of all workers together, that the mean return is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """How a policy is trained.

    Args:
        workers: K.
        seed: of weights, episodes, actions.
        environments: of each worker.
        horizon: most steps that an environment makes before gradients are computed.
        reuse: gradients that are computed of what has been played.
        eta: Adam's step.
        discount: γ of the return.
        trace: λ of the advantage.
        clip: ε; None: no clipping.
        entropy: weight of the policy's entropy.
        value: weight of the value function's squared error.
        max_norm: largest norm of a gradient; a larger one is scaled down to it.
        hidden: units of a hidden layer.
        target: mean return that is enough.
        evaluation: episodes that a certificate plays with the greedy policy.
    """

    workers: int = 1
    seed: int = 0
    environments: int = 8
    horizon: int = 64
    reuse: int = 10
    eta: float = 1e-3
    discount: float = 0.98
    trace: float = 0.9
    clip: float | None = 0.2
    entropy: float = 0.0
    value: float = 0.5
    max_norm: float = 0.5
    hidden: int = 64
    target: float = 475.0
    evaluation: int = 100

    def __post_init__(self) -> None:
        for name in ("workers", "environments", "horizon", "reuse", "hidden", "evaluation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, but is {getattr(self, name)}")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, but is {getattr(self, name)}")
        if not 0 < self.target <= MOST_RETURN:
            raise ConfigError(
                f"target must be above 0 and at most {MOST_RETURN}, the longest episode's return, "
                f"but is {self.target}"
            )
        for name in ("eta", "max_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be greater than 0, but is {getattr(self, name)}")

    def network(self) -> ActorCritic:
        """Return the networks that are trained."""
        return ActorCritic(SIZE, ACTIONS, self.hidden)


class _Part(Protocol):
    @property
    def values(self) -> Mapping[str, float]: ...


class PolicyServer:
    """Applies gradients with Adam as they come.

    Args:
        settings: of the training.
        w: to begin with, float32 (dim,); by default drawn by the seed.
    """

    def __init__(self, settings: PolicySettings, w: Tensor | None = None) -> None:
        self._settings = settings
        first = settings.network().initial(settings.seed) if w is None else w.clone()
        self._w = torch.nn.Parameter(first)
        self._adam = torch.optim.Adam([self._w], lr=settings.eta, eps=1e-5)
        self._norms: list[float] = []

    def phase(self) -> Phase:
        """Return the only phase, which never ends."""
        return Phase(number=0, kind="play")

    def opening(self) -> Tensors:
        """Return nothing: a worker needs w alone."""
        return ()

    def answer(self, worker: int) -> Tensors:  # noqa: ARG002
        """Return the w of now."""
        return (self._w.detach().clone(),)

    def apply(self, worker: int, message: Tensors, staleness: int) -> None:
        """Make one step of Adam.

        Raises:
            NonFiniteLossError: the gradient is not finite.
        """
        gradient = message[0]
        norm = float("nan") if gradient is None else float(torch.linalg.vector_norm(gradient))
        if gradient is None or not math.isfinite(norm):
            raise NonFiniteLossError(
                f"a policy gradient must be finite, but that of worker {worker}, {staleness} "
                f"updates old, is not: lower eta, which is {self._settings.eta:g}"
            )
        self._norms.append(norm)
        self._w.grad = gradient * min(1.0, self._settings.max_norm / max(norm, 1e-12))
        self._adam.step()

    def changed(self) -> None:
        """Any weight may have changed."""

    def close_phase(self) -> None:
        """Do nothing: the phase does not end."""

    def certify(
        self,
        parts: Mapping[int, _Part],
        answer: Tensors,  # noqa: ARG002
    ) -> dict[str, float]:
        """Return the mean returns, and by how much the evaluated one falls short of the target."""
        sums: dict[str, float] = {}
        for part in parts.values():
            for name, value in part.values.items():
                sums[name] = sums.get(name, 0.0) + value
        evaluated = sums["evaluated_return"] / max(sums["evaluated"], 1.0)
        return {
            "episodes": sums["episodes"],
            "mean_return": sums["last_return"] / max(sums["last"], 1.0),
            "greedy_return": evaluated,
            "shortfall": max(0.0, self._settings.target - evaluated),
        }

    def judge(self, figures: Mapping[str, float]) -> str | None:  # noqa: ARG002
        """Go on: returns go down as well as up on the way."""
        return None

    def mark(self, worker: int, number: int) -> None:
        """Do nothing: `judge` never sends anybody back."""

    def rewind(self, number: int | None) -> None:
        """Do nothing: `judge` never sends anybody back."""

    def kept(self, worker: int, step: int) -> None:
        """Do nothing: a gradient stays applied when its worker is lost."""

    def take_back(self, worker: int, step: int | None) -> None:
        """Do nothing: a gradient stays applied when its worker is lost."""

    def weights(self, answer: Tensors) -> dict[str, Tensor]:
        """Return w by name."""
        w = answer[0]
        return {} if w is None else {"w": w.detach().cpu()}

    def report(self) -> dict[str, Any]:
        """Return the mean norm of the gradients since the last report."""
        norms, self._norms = self._norms, []
        return {
            "eta": self._settings.eta,
            "gradient_norm": sum(norms) / len(norms) if norms else 0.0,
        }

    def save(self) -> dict[str, Any]:
        """Return w and Adam's moments."""
        moments = self._adam.state.get(self._w, {})
        return {
            "w": self._w.detach().clone(),
            "adam": {name: value.clone() for name, value in moments.items()},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        with torch.no_grad():
            self._w.copy_(saved["w"])
        self._adam.state.clear()
        if saved["adam"]:
            self._adam.state[self._w] = {n: value.clone() for n, value in saved["adam"].items()}
