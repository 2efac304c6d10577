"""K stages of one pipeline: started, measured, run and watched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.errors import LinkError, MechanismError
from actors.groups.group import Group
from actors.groups.part_writer import Keeping
from actors.groups.placement import Post
from actors.pipeline.probes import BATCH_PAUSE_S, MessageTimes, StageTimes
from actors.pipeline.program import StageProgram
from actors.pipeline.stage_actor import Feed, RuleFactory, StageActor
from actors.units import Tensors

__all__ = ["Look", "Supervisor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the stages have done since the last look.

    Args:
        batches: that the last stage has begun, in all.
        rows: that they reported.
        written: parts of checkpoints: the step, and what the stage's writer said of the part.
    """

    batches: int
    rows: list[dict[str, Any]]
    written: list[tuple[int, Any]]


class Supervisor(Group):
    """K stage actors in one placement group, as a context: leaving it leaves nothing behind.

    Args:
        resources: what each stage needs, by Ray's names, one mapping a stage.
        threads: of torch's operators in each stage.
        seed: of the stages' global generators.
        wait_s: how long to wait for the cluster to have the resources.
        strategy: of the placement group.
        tags: `method` and `run`, of the stages' metrics.

    Raises:
        PlacementError: the resources are not there in time; the message says what is missing.
    """

    def __init__(
        self,
        resources: Sequence[Mapping[str, float]],
        *,
        threads: int,
        seed: int,
        wait_s: float,
        strategy: str = "PACK",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        common = (threads, seed, dict(tags or {}))
        posts = {
            k: Post(actor=StageActor, arguments=(k, *common), resources=each)
            for k, each in enumerate(resources)
        }
        super().__init__(posts, wait_s, strategy)

    def load(self, rules: Sequence[RuleFactory]) -> None:
        """Build every stage's rule."""
        self.ask(s.load.remote(rule) for s, rule in zip(self.handles, rules, strict=True))

    # ------------------------------------------------------------------ measurements

    def stage_times(
        self, inputs: Sequence[Tensors], repeats: int, *, together: bool = True
    ) -> list[StageTimes]:
        """Time every stage: all at once, as a pipeline runs, or one after another."""
        calls = (
            functools.partial(stage.measure.remote, given, repeats)
            for stage, given in zip(self.handles, inputs, strict=True)
        )
        if together:
            return self.ask(call() for call in calls)
        return [self.ask([call()])[0] for call in calls]

    def block_times(
        self, blocks: Sequence[RuleFactory], inputs: Sequence[Tensors], repeats: int
    ) -> list[list[StageTimes]]:
        """Time every block of a chain on every stage's device, all stages at once."""
        return self.ask(
            stage.measure_blocks.remote(blocks, inputs, repeats) for stage in self.handles
        )

    def message_times(
        self, payloads: Sequence[Tensors], repeats: int, pause_s: float = BATCH_PAUSE_S
    ) -> list[MessageTimes]:
        """Return what one message over each link between neighbours costs, after a pause."""
        times = []
        for k, payload in enumerate(payloads):
            timed, _ = self.ask(
                [
                    self.handles[k].time_messages.remote(payload, repeats, pause_s),
                    self.handles[k + 1].echo_messages.remote(repeats),
                ]
            )
            times.append(timed)
        return times

    # ------------------------------------------------------------------ run

    def run(
        self,
        programs: Sequence[StageProgram],
        feed: Feed,
        watch: Callable[[Look], bool],
        keeping: Sequence[Keeping] | None = None,
        period_s: float = 0.25,
    ) -> None:
        """Run all stages to the end; the driver only watches.

        Args:
            programs: of all stages, in order.
            feed: what stage 0 reads.
            watch: called about every `period_s` with what the stages have done since; tells
                whether the run is to end before the next batch, with nothing left in flight.
            keeping: of every stage, how it keeps checkpoints; default: none.
            period_s: seconds between two looks.

        Raises:
            StageLostError: a stage's process or node died.
            LinkError: a link was cut. What a stage's computation raised is raised as it is.
        """
        kept: Sequence[Keeping | None] = keeping or [None] * len(programs)
        running = [
            stage.run.remote(program, feed if program.first else None, keep)
            for stage, program, keep in zip(self.handles, programs, kept, strict=True)
        ]
        left, ends = list(running), False
        while left:
            done, left = ray.wait(left, num_returns=len(left), timeout=period_s)
            try:
                self.ask(done)
            except LinkError:
                self.check_alive()
                raise
            if watch(self._look()) and not ends:
                ends = True
                self.ask([self.handles[0].end.remote()])
        watch(self._look())
        held = {k: each for k, each in enumerate(self._remains()) if each}
        if held:
            raise MechanismError(f"the run ended, but the stages still hold {held}")

    def save(self) -> None:
        """Ask for a checkpoint soon, while the stages run; `watch` hears of its parts."""
        self.ask([self.handles[0].save.remote()])

    def states(self) -> Iterator[dict[str, Any]]:
        """Yield every stage's weights and buffers, one stage at a time."""
        for stage in self.handles:
            yield self.ask([stage.state.remote()])[0]

    # ------------------------------------------------------------------ inside

    def _remains(self) -> list[dict[str, int]]:
        return self.ask(stage.remains.remote() for stage in self.handles)

    def _look(self) -> Look:
        looks = self.ask(stage.progress.remote() for stage in self.handles)
        return Look(
            batches=looks[-1][0],
            rows=[row for _, rows, _ in looks for row in rows],
            written=[part for _, _, parts in looks for part in parts],
        )
