"""The rules that train a policy on episodes: there are no rows, workers make their samples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from actors.server.protocols import ServerRule
from actors.server.staleness import Bound
from raylab.algorithms.server.policy_gradient import PolicyServer, PolicySettings
from raylab.algorithms.server.policy_worker import PolicyWorker
from raylab.drivers.server.asked import Asked
from raylab.errors import ConfigError

__all__ = ["EPOCH_STEPS", "PolicyRules", "policy_settings"]

EPOCH_STEPS = 10_000
"""Steps of environments that count as an epoch."""
_NOT_OPTIONS = ("workers", "seed", "eta")


def policy_settings(asked: Asked, workers: int) -> PolicySettings:
    """Return how a policy is trained; the problem's options are the settings by their names.

    Raises:
        ConfigError: the method trains no policy, an option is unknown or a number out of its range.
    """
    if asked.method != "asysgd":
        raise ConfigError(
            f"{asked.problem} is trained by asysgd, asynchronous policy gradients, but got "
            f"method={asked.method}"
        )
    if asked.eta == "theory":
        raise ConfigError(f'{asked.problem} has no eta="theory": give a number or "auto"')
    known = {each.name: each.default for each in fields(PolicySettings)}
    for name in _NOT_OPTIONS:
        del known[name]
    for name, value in asked.options.items():
        if name not in known:
            raise ConfigError(
                f"the options of {asked.problem} are {', '.join(known)}, but got {name!r}"
            )
        kinds = (int,) if type(known[name]) is int else (int, float)
        if type(value) not in kinds and not (name == "clip" and value is None):
            word = "a whole number" if kinds == (int,) else "a number"
            raise ConfigError(f"options.{name} must be {word}, but got {value!r}")
    given: dict[str, Any] = dict(asked.options)
    if not isinstance(asked.eta, str):
        given["eta"] = asked.eta
    return PolicySettings(workers=workers, seed=asked.seed, **given)


class PolicyRules:
    """Asynchronous policy gradients, see `raylab.drivers.server.run.Rules`.

    Args:
        settings: of the training.
        problem: its name.
        delta: largest staleness in updates; None: 16 of each worker.
    """

    divided = False
    synchronous = False
    broadcast = 0
    epoch_samples = EPOCH_STEPS
    figure = "shortfall"
    sums = None

    def __init__(self, settings: PolicySettings, problem: str, delta: int | None) -> None:
        self.settings = settings
        self._problem = problem
        self._delta = delta

    @property
    def title(self) -> str:
        """The method and the problem."""
        return f"AsySGD {self._problem}"

    @property
    def bound(self) -> Bound:
        """How stale a message may be; one that is later is computed anew."""
        updates = 16 * self.settings.workers if self._delta is None else self._delta
        return Bound(updates=updates, late="refresh")

    @property
    def question(self) -> Callable[[Any], None]:
        """Ask nothing: there is no data to know."""
        return _nothing

    def supplies(self, workers: int) -> Mapping[int, Callable[[], None]]:
        """Return what makes nothing: a worker has its environments of itself."""
        return dict.fromkeys(range(workers), functools.partial(_nothing, None))

    def settle(self, facts: Mapping[int, None], workers: int) -> None:  # noqa: ARG002
        """Take note of the number of workers."""
        self.settings = replace(self.settings, workers=workers)

    def cut(self, servers: int) -> None:
        """Return nothing: a gradient's norm is of all its coordinates."""

    def server(self, servers: int = 1, shard: int = 0) -> Callable[[], ServerRule]:  # noqa: ARG002
        """Return what makes the server's rule."""
        return functools.partial(PolicyServer, self.settings)

    def worker(self, worker: int) -> Callable[[Any], Any]:
        """Return what makes a worker's rule."""
        return functools.partial(_worker, self.settings, worker)

    def about(self) -> dict[str, Any]:
        """Return what makes a run this one and no other."""
        return {"problem": self._problem, "options": self._options()}

    def since(self, about: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing: no run was ever begun in another way."""
        return {}

    def described(self) -> dict[str, Any]:
        """Return the problem and its options, as config.yaml has them."""
        return {"problem": self._problem, "options": self._options(), "data": None}

    def resolved(self) -> dict[str, Any]:
        """Return what was decided."""
        return {
            "first_eta": self.settings.eta,
            "delta": self.bound.updates,
            "epoch_steps": EPOCH_STEPS,
            "dim": self.settings.network().dim,
        }

    def notes(self) -> list[str]:
        """Return nothing: no theorem is claimed."""
        return []

    def _options(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self.settings).items() if k not in _NOT_OPTIONS}


def _nothing(supplied: Any) -> None:  # noqa: ARG001
    return None


def _worker(settings: PolicySettings, worker: int, supplied: Any) -> PolicyWorker:  # noqa: ARG001
    return PolicyWorker(settings, worker)
