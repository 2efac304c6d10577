"""What trains what: the kinds of runs that a parameter server's keys can mean.

rows      workers with shards of the rows and a server, all methods that send messages
threads   shared_asysvrg: one process, whose threads share w
episodes  cartpole: workers play it, and push policy gradients to the same server
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from actors.groups.group import Group
from raylab.algorithms.server.rule_factory import ServerSettings
from raylab.algorithms.server.shards import Cut
from raylab.config.parameter_server import DATA, EPISODES, SHARED
from raylab.data import RowSource
from raylab.drivers.commits import Commits
from raylab.drivers.recovery import Losses
from raylab.drivers.run_view import RunView
from raylab.drivers.server.asked import Asked, Means
from raylab.drivers.server.numbers import Limits, workers_of
from raylab.drivers.server.policy_rules import PolicyRules, policy_settings
from raylab.drivers.server.row_rules import RowRules
from raylab.drivers.server.run import ServerRun
from raylab.drivers.server.shared_run import SharedRun, shared_settings
from raylab.drivers.server.workload import Problem, Workload, check_needs, workload
from raylab.errors import ConfigError, DataError
from raylab.records import CheckpointStore, RunFolder

__all__ = ["Data", "Kind", "Run", "kind_of"]

Data = str | RowSource | int | None
"""Spec of rows, rows, how many samples there are, or nothing."""


class Run(Protocol):
    """One run, from checked settings to rows and weights."""

    rows: list[dict[str, Any]]
    """Of metrics; where a run goes on, those so far."""

    @property
    def ended_by(self) -> str:
        """Why it has ended."""
        ...

    @property
    def noun(self) -> str:
        """What may be lost."""
        ...

    @property
    def title(self) -> str:
        """What runs, in a line."""
        ...

    @property
    def figure(self) -> str:
        """Which figure of a certificate the tolerance is of."""
        ...

    @property
    def shares(self) -> int:
        """Into how many parts a machine of its own is divided."""
        ...

    def described(self) -> dict[str, Any]:
        """Return the problem, its options and its data, as config.yaml has them."""
        ...

    def resolved(self) -> dict[str, Any]:
        """Return what was decided."""
        ...

    def notes(self) -> list[str]:
        """Return what the theorems do not cover."""
        ...

    def keep_in(self, store: CheckpointStore, folder: RunFolder) -> Commits:
        """Keep checkpoints there, and return them."""
        ...

    def open(self, needs: Mapping[str, float]) -> Group:
        """Return the actors, to be entered; each worker takes `needs`."""
        ...

    def carry_out(self, group: Any, losses: Losses, view: RunView) -> Mapping[str, Tensor]:
        """Run from the newest checkpoint to the end, and return the weights."""
        ...


class Kind:
    """How a method trains a problem.

    Args:
        asked: by the user.

    Raises:
        ConfigError: a key is given that says nothing here, or the numbers do not go together.
    """

    epochs = 100.0
    """Where none are given."""
    data: str | None = DATA
    """Where none is given to the command."""
    elastic = True
    """Whether workers may come and go."""
    unused: Sequence[str] = ("coordinates",)
    """Keys that say nothing here."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        given = asked.given()
        found = [f"{name}={given[name]}" for name in self.unused if name in given]
        if found:
            raise ConfigError(
                f"{self.subject} has no use for {', '.join(found)}: leave that out{self.instead}"
            )
        if not self.elastic and not isinstance(self.workers, int):
            raise ConfigError(
                f"{self.subject} keeps the workers that it begins with, but got "
                f"workers={list(self.workers)}: give one number"
            )

    @property
    def subject(self) -> str:
        """Who has no use for a key."""
        return self.asked.method

    @property
    def instead(self) -> str:
        """Who has."""
        return f", or use {SHARED}"

    @property
    def workers(self) -> int | Sequence[int]:
        """K, or the fewest and the most."""
        asked = self.asked.workers
        return workers_of(self.asked.method) if asked is None else asked

    @staticmethod
    def bundles(needs: Mapping[str, float], workers: int, servers: int) -> list[dict[str, float]]:
        """Return what each actor of a run needs: servers first, then workers.

        Args:
            needs: of a worker, by Ray's names.
            workers: K.
            servers: S.
        """
        server = {"CPU": needs["CPU"]}
        return [dict(each) for each in [server] * servers + [needs] * workers]

    def check(self, workers: int) -> None:
        """Check what can be before the data is known."""
        # Numbers of the data that stand in no other's way.
        _settings(replace(self.asked, local_steps=None), workers, n=2**62, dim=1)

    def run(self, data: Data, limits: Limits, means: Means) -> Run:
        """Return the run, all of it checked that goes without reading rows.

        Raises:
            ConfigError: a number does not go with the data.
            DataError: the data is missing or malformed, or not of the problem's kind.
        """
        asked = self.asked
        work = _work(asked, data)
        # What only the objective knows stands in no other's way.
        wanted = means.elastic.wanted
        settings = _settings(asked, wanted, n=work.n, dim=max(1, work.dim))
        check_needs(asked.problem, settings.traits)
        if work.dim:
            Cut(dim=work.dim, servers=asked.servers)
        return ServerRun(RowRules(settings, work), asked, limits, means)


class _Threads(Kind):
    elastic = False
    unused = (
        *("straggler", "sample_s", "delta", "broadcast", "local_steps", "sampling", "pretrain"),
        *("servers", "wire"),
    )
    instead = ""

    @staticmethod
    def bundles(
        needs: Mapping[str, float],
        workers: int,
        servers: int,  # noqa: ARG004 - there are none
    ) -> list[dict[str, float]]:
        return [{name: amount * workers for name, amount in needs.items()}]

    def check(self, workers: int) -> None:
        shared_settings(self.asked, workers)

    def run(self, data: Data, limits: Limits, means: Means) -> Run:
        work = _work(self.asked, data)
        settings = shared_settings(self.asked, means.elastic.wanted)
        if work.dim:
            settings.block(work.dim)
        return SharedRun(settings, work, self.asked, limits, means)


class _Episodes(Kind):
    epochs = 20.0
    data = None
    unused = (
        *("strength", "local_steps", "inner", "batch", "coordinates", "broadcast", "sampling"),
        *("pretrain", "servers"),
    )
    instead = ""

    @property
    def subject(self) -> str:
        return str(self.asked.problem)

    def check(self, workers: int) -> None:
        policy_settings(self.asked, workers)

    def run(self, data: Data, limits: Limits, means: Means) -> Run:
        if data is not None:
            raise DataError(
                f"{self.subject} makes its own data, the episodes that are played, but got "
                f"data={data}: leave it out"
            )
        settings = policy_settings(self.asked, means.elastic.wanted)
        rules = PolicyRules(settings, self.subject, self.asked.delta)
        return ServerRun(rules, self.asked, limits, means)


def kind_of(problem: Problem, method: str) -> type[Kind]:
    """Return how a method trains a problem."""
    if problem == EPISODES:
        return _Episodes
    return _Threads if method == SHARED else Kind


def _work(asked: Asked, data: Data) -> Workload:
    if data is None:
        raise DataError(f"data must be given for problem={asked.problem}, for instance libsvm:PATH")
    return workload(asked.problem, data, strength=asked.strength, seed=asked.seed, **asked.options)


def _settings(asked: Asked, workers: int, **data: int) -> ServerSettings:
    given = asked.numbers(
        *("method", "strength", "eta", "local_steps", "inner", "batch", "broadcast", "delta"),
        *("sampling", "pretrain", "seed"),
    )
    return ServerSettings(**{**given, **data}, workers=workers, smoothness=1.0)
