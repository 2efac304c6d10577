"""CartPole-v1 of gymnasium: the episodes of one worker, and the return of a policy.

A pole on a cart; every step that it stands is worth 1. An episode ends when the pole has fallen
or the cart has left the track ("terminated"), or after 500 steps ("truncated").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

__all__ = ["ACTIONS", "MOST_RETURN", "SIZE", "Episodes", "Step", "greedy_returns"]

NAME = "CartPole-v1"
ACTIONS = 2
SIZE = 4
"""Numbers in an observation."""
MOST_RETURN = 500
"""Of an episode, after which it is cut."""
_TRAINING, _EVALUATION = 0, 1  # what a seed is for

Observations = NDArray[np.float32]


class Step(NamedTuple):
    """What came of one action."""

    observation: Observations
    """After it, shape (4,)."""
    terminated: bool
    truncated: bool


class Episodes:
    """Some environments, whose episodes are drawn by (seed, worker, environment, episode).

    The time limit is counted here and not by gymnasium's wrapper, which could not be put back to
    where it was saved.

    Args:
        count: of environments.
        seed: of the run.
        worker: that they belong to.
        remembered: returns that are kept.
    """

    def __init__(self, count: int, *, seed: int, worker: int, remembered: int = 100) -> None:
        self._key = (seed, worker)
        self._environments = [_environment() for _ in range(count)]
        self._episodes = [-1] * count
        self._steps = [0] * count
        self.observations: Observations = np.zeros((count, SIZE), dtype=np.float32)
        """Of now, shape (count, 4). Read only."""
        self.ended = 0
        """Episodes that have come to their end."""
        self.last: deque[int] = deque(maxlen=remembered)
        """Returns of the last of them, in the order in which they ended."""
        for index in range(count):
            self._reset(index)

    def step(self, index: int, action: int) -> Step:
        """Act in one environment; if its episode ends, begin the next one."""
        environment = self._environments[index]
        observation, _, terminated, _, _ = environment.step(action)
        self._steps[index] += 1
        truncated = not terminated and self._steps[index] >= _limit()
        if terminated or truncated:
            self.ended += 1
            self.last.append(self._steps[index])
            self._reset(index)
        else:
            self.observations[index] = observation
        return Step(observation, terminated, truncated)

    def save(self) -> dict[str, Any]:
        """Return where the episodes under way stand, and what the ended ones were worth."""
        return {
            "episodes": list(self._episodes),
            "steps": list(self._steps),
            "states": [[float(x) for x in each.state] for each in self._environments],
            "ended": self.ended,
            "last": list(self.last),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `save` returned."""
        self._episodes = [int(each) - 1 for each in saved["episodes"]]
        self.ended = int(saved["ended"])
        self.last.clear()
        self.last.extend(int(each) for each in saved["last"])
        for index, state in enumerate(saved["states"]):
            self._reset(index)
            self._environments[index].state = np.array(state)
            self.observations[index] = state
        self._steps = [int(each) for each in saved["steps"]]

    def _reset(self, index: int) -> None:
        self._episodes[index] += 1
        self._steps[index] = 0
        seed = _seed(_TRAINING, *self._key, index, self._episodes[index])
        self.observations[index], _ = self._environments[index].reset(seed=seed)


def greedy_returns(
    policy: Callable[[Observations], NDArray[np.int64]], count: int, *, seed: int, worker: int = 0
) -> list[int]:
    """Return what `count` new episodes are worth, one of each environment.

    Args:
        policy: from observations (count, 4) to actions (count,).
        count: of episodes, all played at once.
        seed: of the evaluation; its episodes are none of training.
        worker: that evaluates.
    """
    if count == 0:
        return []
    environments = gymnasium.make_vec(NAME, num_envs=count, vectorization_mode="vector_entry_point")
    observations, _ = environments.reset(seed=_seed(_EVALUATION, seed, worker))
    steps = np.zeros(count, dtype=np.int64)
    playing = np.ones(count, dtype=bool)
    while playing.any():
        observations, _, terminated, truncated, _ = environments.step(policy(observations))
        steps += playing
        # An environment whose episode has ended begins another one, which is not counted.
        playing &= ~(terminated | truncated)
    environments.close()
    return [int(each) for each in steps]


def _environment() -> Any:
    return gymnasium.make(NAME, disable_env_checker=True).unwrapped


def _limit() -> int:
    return int(gymnasium.spec(NAME).max_episode_steps or 0)


def _seed(use: int, *key: int) -> int:
    return int(np.random.SeedSequence(key, spawn_key=(use,)).generate_state(1)[0])
