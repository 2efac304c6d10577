"""A solver that needs no server: one actor, whose threads share their memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
import torch

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import MechanismError
from actors.groups.member import GROUPS, Member
from actors.groups.part_writer import Keeping, resumed

__all__ = ["Solver", "SolverActor", "SolverFactory", "SolverMember", "SolverNews"]


class Solver(Protocol):
    """What computes, in the process of the actor."""

    @property
    def step(self) -> int:
        """Steps so far."""
        ...

    @property
    def ended_by(self) -> str:
        """Why the run has ended; empty before."""
        ...

    def run(self) -> Iterator[Mapping[str, Any] | None]:
        """Go on to the end, yielding wherever the state can be kept: a row of metrics, or None."""
        ...

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Return the model by name."""
        ...

    def save(self) -> Mapping[str, Any]:
        """Return the state: tensors nobody will write to, numbers, text."""
        ...

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        ...


SolverFactory = Callable[[], Solver]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverNews:
    """What the solver has to tell since it was last asked.

    Args:
        rows: of metrics.
        written: parts of checkpoints, each with its step.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    written: list[tuple[int, Any]] = field(default_factory=list)


class SolverMember(Member):
    """A solver, in the process of its actor.

    Args:
        threads: of torch's operators in this process.
        seed: of the process's global generators.
    """

    def __init__(self, threads: int, seed: int) -> None:
        super().__init__(0, "the solver", threads, seed)
        self._solver: Solver | None = None
        self._saving = threading.Event()

    def load(self, make: SolverFactory, question: Callable[[Any], Any]) -> Any:
        """Make the solver; return what `question` finds out about it."""
        torch.set_num_threads(self._threads)
        self._solver = make()
        return question(self._solver)

    def run(self, plan: CheckpointPlan, keeping: Keeping | None) -> str:
        """Run to the end, or until `stop`; return why the run has ended.

        Args:
            plan: when to save, counted in steps.
            keeping: of the parts of checkpoints.
        """
        solver = self._loaded()
        part = resumed(keeping)
        if part is not None:
            solver.restore(part["rule"])
        since, then = solver.step, time.perf_counter()
        with self._keeping(keeping) as writer:
            for row in solver.run():
                if row is not None:
                    self._rows.append(dict(row))
                if self._stop.is_set():
                    break
                step, now = solver.step, time.perf_counter()
                asked = self._saving.is_set()
                if writer is not None and plan.due(step, step - since, now - then, asked=asked):
                    self._saving.clear()
                    writer(step, {"step": step, "rule": dict(solver.save())})
                    since, then = step, now
        return solver.ended_by

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the model that the run has ended with."""
        return dict(self._loaded().weights())

    @ray.method(concurrency_group="control")
    def save(self) -> None:
        """Save the next state that can be kept."""
        self._saving.set()

    @ray.method(concurrency_group="control")
    def progress(self) -> SolverNews:
        """Return what is new since the last call."""
        rows, written = self._news()
        return SolverNews(rows=rows, written=written)

    def _loaded(self) -> Solver:
        if self._solver is None:
            raise MechanismError("there is no solver yet: call load first")
        return self._solver


SolverActor: Any = ray.remote(concurrency_groups=GROUPS)(SolverMember)  # type: ignore[call-overload]
"""`SolverMember` as a Ray actor: options, then `remote(threads, seed)`."""
