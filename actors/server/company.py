"""What a server and its workers compute, and how a lost worker comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from actors.groups.part_writer import Keeping
from actors.server.server_actor import ServerProgram, ServerRuleFactory
from actors.server.worker_actor import Supply, WorkerProgram, WorkerRuleFactory

__all__ = ["Company", "Return", "Shard"]


class Return(NamedTuple):
    """How the process in the place of a lost worker begins.

    Args:
        step: of the checkpoint that holds what it begins with; None: with nothing.
        keeping: of the worker.
    """

    step: int | None
    keeping: Keeping | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A range of the coordinates of w that an actor of its own holds.

    Args:
        rule: makes the rule of this range.
        keeping: of its parts of checkpoints.
        adopt: called with the rule once it is restored, where the workers have changed since.
    """

    rule: ServerRuleFactory
    keeping: Keeping | None = None
    adopt: Callable[[Any], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """What a server and its workers compute.

    Args:
        server: makes the server's rule.
        supplies: make what the workers' rules are made from, by worker.
        workers: make the workers' rules, by worker.
        program: of the server.
        paces: of the workers: how fast they are.
        keeping: of the server's parts of checkpoints.
        keepings: of the workers'.
        shards: of w, other than that of the server.
    """

    server: ServerRuleFactory
    supplies: Mapping[int, Supply]
    workers: Mapping[int, WorkerRuleFactory]
    program: ServerProgram
    paces: WorkerProgram = field(default_factory=WorkerProgram)
    keeping: Keeping | None = None
    keepings: Mapping[int, Keeping] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
