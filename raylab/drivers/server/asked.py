"""What a user asks of a parameter server, before it is known what trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from actors.checkpoint_plan import CheckpointPlan
from actors.wires.link import WireKind
from raylab.algorithms.server.stragglers import Straggler
from raylab.config import ParameterServerConfig
from raylab.drivers.server.elastic import Elastic
from raylab.drivers.server.workload import Problem

__all__ = ["Asked", "Means"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be computed; the names are the keys', see `raylab.ParameterServerTrainer`."""

    problem: Problem
    method: str
    options: Mapping[str, Any]
    workers: int | Sequence[int] | None
    servers: int
    strength: float
    eta: float | Literal["auto", "theory"]
    local_steps: int | None
    inner: int | None
    batch: int
    coordinates: int | None
    broadcast: int
    delta: int | None
    sampling: str
    pretrain: float
    straggler: str | Straggler | None
    sample_s: float | None
    seed: int
    wire: WireKind

    def numbers(self, *names: str) -> dict[str, Any]:
        """Return some of them by name."""
        return {name: getattr(self, name) for name in names}

    def given(self) -> dict[str, Any]:
        """Return those that are not what they are where nothing is given."""
        defaults = ParameterServerConfig.model_fields
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if value != defaults[name].default}


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What it is computed with.

    Args:
        name: of the run.
        elastic: how many workers are wanted.
        plan: when to save.
        straggler: what is wrong with the workers.
        wait_s: how long to wait for resources, in seconds; None: see `patience_s`.
    """

    name: str
    elastic: Elastic
    plan: CheckpointPlan
    straggler: Straggler
    wait_s: float | None
