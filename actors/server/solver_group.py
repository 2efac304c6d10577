"""One actor with a solver in it: placed, loaded, watched to its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray

from actors.checkpoint_plan import CheckpointPlan
from actors.groups.group import Group
from actors.groups.part_writer import Keeping
from actors.groups.placement import Post
from actors.server.server_runner import ASKED
from actors.server.solver_actor import SolverActor, SolverFactory, SolverNews

__all__ = ["SolverGroup"]

_PERIOD_S = 0.25


class SolverGroup(Group):
    """A solver's actor, as a context: leaving it leaves nothing behind.

    Args:
        resources: what it needs, by Ray's names.
        threads: of torch's operators in its process.
        seed: of the process's global generators.
        wait_s: how long to wait for the cluster to have the resources.

    Raises:
        PlacementError: the resources are not there in time; the message says what is missing.
    """

    def __init__(
        self, resources: Mapping[str, float], *, threads: int, seed: int, wait_s: float
    ) -> None:
        post = Post(actor=SolverActor, arguments=(threads, seed), resources=resources)
        super().__init__({0: post}, wait_s, noun="solver")

    def load(self, make: SolverFactory, question: Callable[[Any], Any]) -> Any:
        """Let the actor make its solver; return what `question`, called with it, finds out."""
        (found,) = self.ask([self.handle(0).load.remote(make, question)])
        return found

    def run(
        self, plan: CheckpointPlan, keeping: Keeping | None, watch: Callable[[SolverNews], bool]
    ) -> str:
        """Run to the end; the driver only watches.

        Args:
            plan: when to save, counted in steps.
            keeping: of the parts of checkpoints.
            watch: called a few times a second with what is new; tells whether to end soon.

        Returns:
            Why the run has ended.

        Raises:
            ActorLostError: the process or its node died. What the computation raised is raised as
                it is.
        """
        solver = self.handle(0)
        ending = solver.run.remote(plan, keeping)
        done: list[Any] = []
        while not done:
            done, _ = ray.wait([ending], timeout=_PERIOD_S)
            if watch(*self.ask([solver.progress.remote()])):
                self.ask([solver.stop.remote()])
        (ended_by,) = self.ask([ending])
        return str(ended_by) or ASKED

    def save(self) -> None:
        """Ask for a checkpoint soon, while the solver runs; `watch` hears of it."""
        self.ask([self.handle(0).save.remote()])

    def weights(self) -> dict[str, Any]:
        """Return the model that a run has ended with."""
        found: dict[str, Any] = self.ask([self.handle(0).weights.remote()])[0]
        return found
