"""A worker of asynchronous policy gradients: it plays, and differentiates what it has played.

Equations and references are in `raylab.algorithms.server.policy_gradient`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from raylab.algorithms.server.parts import Part, Task, Tensors
from raylab.algorithms.server.policy_gradient import (
    LAST_EPISODES,
    PolicySettings,
)
from raylab.data.augment import Stream, keyed_generator
from raylab.problems.cartpole import Episodes, greedy_returns

__all__ = ["Played", "PolicyWorker", "advantages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What has been played at one w; N steps."""

    observations: Tensor
    """Shape (N, 4)."""
    actions: Tensor
    """Shape (N,), int64."""
    log_probabilities: Tensor
    """Of the actions, when they were chosen, shape (N,)."""
    advantages: Tensor
    """Mean 0, deviation 1, shape (N,)."""
    returns: Tensor
    """That the value function is to learn, shape (N,)."""


def advantages(
    rewards: NDArray[np.float64], values: NDArray[np.float64], discount: float, trace: float
) -> NDArray[np.float64]:
    """Return the generalised advantage estimates of some steps in a row.

    A_t = Σ_l (γλ)^l δ_{t+l},  δ_t = r_t + γ V(s_{t+1}) - V(s_t)  (Schulman et al. 2016, eq. 16).

    Args:
        rewards: of T steps.
        values: V(s_0) … V(s_T), (T+1,): the last is 0 if the episode terminated there.
        discount: γ.
        trace: λ.

    >>> advantages(np.array([1.0, 1.0]), np.array([0.5, 0.5, 0.0]), 1.0, 1.0).tolist()
    [1.5, 0.5]
    """
    deltas = rewards + discount * values[1:] - values[:-1]
    total = 0.0
    found = np.empty_like(deltas)
    for t in range(len(deltas) - 1, -1, -1):
        total = deltas[t] + discount * trace * total
        found[t] = total
    return found


class PolicyWorker:
    """Plays, and computes gradients of what it has played.

    Args:
        settings: of the training.
        worker: k, counted from 0.
    """

    def __init__(self, settings: PolicySettings, worker: int) -> None:
        self._settings = settings
        self._worker = worker
        self._network = settings.network()
        self._episodes = Episodes(
            settings.environments,
            seed=settings.seed,
            worker=worker,
            remembered=math.ceil(LAST_EPISODES / settings.workers),
        )
        self._played: Played | None = None
        self._uses_left = 0
        self._gradient: Tensor | None = None
        self._steps = 0

    def begin(self, phase: object, opening: Tensors) -> None:
        """Do nothing: what has been played remains of use."""

    def work(self, task: Task, answer: Tensors, piece: int) -> None:  # noqa: ARG002
        """Play, if what was played has been used up; then compute a gradient."""
        w = answer[0]
        if w is None:
            raise ValueError("a worker must be given w")
        self._steps = 0
        if self._played is None or self._uses_left == 0:
            self._played = self._play(w, task.number)
            self._uses_left = self._settings.reuse
            self._steps = len(self._played.actions)
        self._uses_left -= 1
        self._gradient = self._differentiate(w, self._played)

    def message(self) -> Tensors:
        """Return the gradient."""
        return (self._gradient,)

    def commit(self) -> None:
        """Do nothing: nothing here depends on what has become of a gradient."""

    def discard(self) -> None:
        """Do nothing: what has been played remains played."""

    def certify(self, answer: Tensors) -> Part:
        """Return the sums of this worker's share of the last and of the evaluated episodes."""
        w, settings = answer[0], self._settings
        if w is None:
            raise ValueError("a worker must be given w")
        last = self._episodes.last
        # The workers share the evaluation: k plays the episodes lo..hi of all.
        place = self._worker % settings.workers
        lo, hi = (settings.evaluation * k // settings.workers for k in (place, place + 1))
        evaluated = greedy_returns(
            lambda observations: self._greedy(w, observations),
            hi - lo,
            seed=settings.seed,
            worker=self._worker,
        )
        return Part(
            values={
                "episodes": float(self._episodes.ended),
                "last": float(len(last)),
                "last_return": float(sum(last)),
                "evaluated": float(len(evaluated)),
                "evaluated_return": float(sum(evaluated)),
            },
            tensors={},
        )

    def mark(self, number: int, good: int | None) -> None:
        """Do nothing: the server never sends anybody back."""

    def rewind(self, number: int | None) -> None:
        """Do nothing: the server never sends anybody back."""

    def samples(self) -> int:
        """Return how many steps of environments were made for the last message."""
        return self._steps

    def save(self) -> dict[str, Any]:
        """Return where the episodes stand, and what has been played and is still of use."""
        played = self._played
        return {
            "episodes": self._episodes.save(),
            "uses_left": self._uses_left,
            "played": None if played is None else asdict(played),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `save` returned."""
        self._episodes.restore(saved["episodes"])
        played = saved["played"]
        self._played = None if played is None else Played(**played)
        self._uses_left = int(saved["uses_left"])

    # ------------------------------------------------------------------------- inside

    @torch.no_grad()
    def _greedy(self, w: Tensor, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        chosen: NDArray[np.int64] = (
            self._network.policy(w, torch.from_numpy(observations)).argmax(dim=1).numpy()
        )
        return chosen

    @torch.no_grad()
    def _play(self, w: Tensor, number: int) -> Played:
        """Let every environment play until its episode ends, for at most `horizon` steps."""
        settings, episodes = self._settings, self._episodes
        draws = keyed_generator(Stream.SAMPLES, settings.seed, self._worker, number)
        count = settings.environments
        seen: list[list[NDArray[np.float32]]] = [[] for _ in range(count)]
        actions: list[list[int]] = [[] for _ in range(count)]
        terminated = [False] * count
        playing = list(range(count))
        for _ in range(settings.horizon):
            logits = self._network.policy(w, torch.from_numpy(episodes.observations[playing]))
            below = torch.softmax(logits, dim=1).cumsum(dim=1)[:, :-1].numpy()
            chosen = (draws.random((len(playing), 1)) > below).sum(axis=1)
            still = []
            for index, action in zip(playing, chosen.tolist(), strict=True):
                seen[index].append(episodes.observations[index].copy())
                actions[index].append(action)
                step = episodes.step(index, action)
                terminated[index] = step.terminated
                if step.terminated or step.truncated:
                    seen[index].append(step.observation)
                else:
                    still.append(index)
            playing = still
            if not playing:
                break
        for index in playing:
            seen[index].append(episodes.observations[index].copy())
        return self._credit(w, seen, actions, terminated)

    def _credit(
        self,
        w: Tensor,
        seen: list[list[NDArray[np.float32]]],
        actions: list[list[int]],
        terminated: list[bool],
    ) -> Played:
        settings = self._settings
        gains, targets, rows = [], [], []
        for track, ended in zip(seen, terminated, strict=True):
            observations = torch.from_numpy(np.stack(track))
            values = self._network.value(w, observations).numpy().astype(np.float64)
            if ended:
                values[-1] = 0.0
            gain = advantages(np.ones(len(track) - 1), values, settings.discount, settings.trace)
            gains.append(gain)
            targets.append(gain + values[:-1])
            rows.append(observations[:-1])
        observations = torch.cat(rows)
        taken = torch.tensor([action for each in actions for action in each])
        gain = np.concatenate(gains)
        return Played(
            observations=observations,
            actions=taken,
            log_probabilities=self._log_probabilities(w, observations)[
                torch.arange(len(taken)), taken
            ],
            advantages=torch.from_numpy((gain - gain.mean()) / (gain.std() + 1e-8)).float(),
            returns=torch.from_numpy(np.concatenate(targets)).float(),
        )

    def _log_probabilities(self, w: Tensor, observations: Tensor) -> Tensor:
        return F.log_softmax(self._network.policy(w, observations), dim=1)

    def _differentiate(self, w: Tensor, played: Played) -> Tensor:
        """Return the gradient of the surrogate, the value's error and the entropy at w."""
        settings = self._settings
        w = w.detach().clone().requires_grad_()
        every = self._log_probabilities(w, played.observations)
        chosen = every.gather(1, played.actions[:, None])[:, 0]
        ratio = (chosen - played.log_probabilities).exp()
        gain = ratio * played.advantages
        if settings.clip is not None:
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            gain = torch.minimum(gain, clipped * played.advantages)
        error = self._network.value(w, played.observations) - played.returns
        entropy = -(every.exp() * every).sum(dim=1).mean()
        loss = -gain.mean() + settings.value * (error**2).mean() - settings.entropy * entropy
        (gradient,) = torch.autograd.grad(loss, w)
        return gradient
