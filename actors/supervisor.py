"""Who places K stages, wires them, watches them and takes them down, whatever happens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.carrier import CarrierKind
from actors.errors import LinkError, MechanismError, PlacementError, StageLostError
from actors.probes import MessageTimes, StageTimes
from actors.process_groups import LOOPBACK
from actors.program import StageProgram
from actors.protocols import Tensors
from actors.stage_actor import Feed, Home, Keeping, RuleFactory, StageActor, WireKind
from actors.wiring import CarrierChoice, Link, carrier_of

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


_NOTICE_S = 5.0
"""Time that Ray takes at most, as a rule, to notice that a process is gone."""


class Supervisor:
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
        self._resources = resources
        self._threads = threads
        self._seed = seed
        self._wait_s = wait_s
        self._strategy = strategy
        self._tags = dict(tags or {})
        self._group: PlacementGroup | None = None
        self._stages: list[Any] = []
        self.homes: list[Home] = []

    def __enter__(self) -> Supervisor:
        try:
            self._place()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def gpus(self) -> bool:
        """Whether the stages have (a share of) a GPU."""
        return any(each.get("GPU") for each in self._resources)

    # ------------------------------------------------------------------ start

    def wire(
        self, links: Sequence[Link], wire: WireKind, carrier: CarrierChoice = "auto"
    ) -> list[CarrierKind]:
        """Open all links: receivers listen, senders connect, receivers greet.

        Args:
            links: of the pipeline.
            wire: of headers, markers and credits.
            carrier: of the tensors; "auto": by where the ends of each link live.

        Returns:
            What carries the tensors of each link.

        Raises:
            MechanismError: the carrier cannot serve two stages that live where they do.
        """
        kinds = self._carriers(links, wire, carrier)
        carried = [link for link, kind in zip(links, kinds, strict=True) if kind == "distributed"]
        if carried:
            one_node = len({home.node_id for home in self.homes}) == 1
            host = LOOPBACK if one_node else self.homes[0].host
            (place,) = self.ask([self._stages[0].open_store.remote(host)])
            count = len(self._stages)
            self.ask(stage.join.remote(place, count, carried) for stage in self._stages)
        ends = [(self._stages[link.source], self._stages[link.target]) for link in links]
        addresses = self.ask(
            target.listen.remote(
                link, wire, self._transport(link), source, self.homes[link.source].public_key, kind
            )
            for link, kind, (source, target) in zip(links, kinds, ends, strict=True)
        )
        self.ask(
            source.connect.remote(link, address, target, kind)
            for link, kind, address, (source, target) in zip(
                links, kinds, addresses, ends, strict=True
            )
            if link.source != link.target
        )
        self.ask(stage.accept.remote() for stage in self._stages)
        return kinds

    def load(self, rules: Sequence[RuleFactory]) -> None:
        """Build every stage's rule."""
        self.ask(s.load.remote(rule) for s, rule in zip(self._stages, rules, strict=True))

    # ------------------------------------------------------------------ measurements

    def stage_times(
        self, inputs: Sequence[Tensors], repeats: int, *, together: bool = True
    ) -> list[StageTimes]:
        """Time every stage: all at once, as a pipeline runs, or one after another."""
        calls = (
            functools.partial(stage.measure.remote, given, repeats)
            for stage, given in zip(self._stages, inputs, strict=True)
        )
        if together:
            return self.ask(call() for call in calls)
        return [self.ask([call()])[0] for call in calls]

    def block_times(
        self, blocks: Sequence[RuleFactory], inputs: Sequence[Tensors], repeats: int
    ) -> list[list[StageTimes]]:
        """Time every block of a chain on every stage's device, all stages at once."""
        return self.ask(
            stage.measure_blocks.remote(blocks, inputs, repeats) for stage in self._stages
        )

    def message_times(self, payloads: Sequence[Tensors], repeats: int) -> list[MessageTimes]:
        """Return what one message over each link between neighbours costs."""
        times = []
        for k, payload in enumerate(payloads):
            timed, _ = self.ask(
                [
                    self._stages[k].time_messages.remote(payload, repeats),
                    self._stages[k + 1].echo_messages.remote(repeats),
                ]
            )
            times.append(timed)
        return times

    # ------------------------------------------------------------------ run

    def run(
        self,
        programs: Sequence[StageProgram],
        feed: Feed,
        watch: Callable[[Look], None],
        keeping: Sequence[Keeping] | None = None,
        period_s: float = 0.25,
    ) -> None:
        """Run all stages to the end; the driver only watches.

        Args:
            programs: of all stages, in order.
            feed: what stage 0 reads.
            watch: called about every `period_s` with what the stages have done since.
            keeping: of every stage, how it keeps checkpoints; default: none.
            period_s: seconds between two looks.

        Raises:
            StageLostError: a stage's process or node died.
            LinkError: a link was cut. What a stage's computation raised is raised as it is.
        """
        kept: Sequence[Keeping | None] = keeping or [None] * len(programs)
        running = [
            stage.run.remote(program, feed if program.first else None, keep)
            for stage, program, keep in zip(self._stages, programs, kept, strict=True)
        ]
        left = list(running)
        while left:
            done, left = ray.wait(left, num_returns=len(left), timeout=period_s)
            try:
                self.ask(done)
            except LinkError:
                self._check_alive()
                raise
            watch(self._look())
        watch(self._look())
        held = {k: each for k, each in enumerate(self._remains()) if each}
        if held:
            raise MechanismError(f"the run ended, but the stages still hold {held}")

    def states(self) -> Iterator[dict[str, Any]]:
        """Yield every stage's weights and buffers, one stage at a time."""
        for stage in self._stages:
            yield self.ask([stage.state.remote()])[0]

    def ask(self, calls: Any) -> list[Any]:
        """Wait for calls of the stages; raise what the first failed one raised.

        Raises:
            StageLostError: an actor died.
        """
        waiting = list(calls)
        index = {call: position for position, call in enumerate(waiting)}
        answers: list[Any] = [None] * len(waiting)
        while waiting:
            done, waiting = ray.wait(waiting)
            for call in done:
                answers[index[call]] = self._answer(call)
        return answers

    # ------------------------------------------------------------------ end

    def close(self) -> None:
        """End every actor and give the resources back. Never raises, may be called twice."""
        stages, self._stages = self._stages, []
        if ray.is_initialized():
            calls = [stage.stop.remote() for stage in stages]
            calls += [stage.close.remote() for stage in stages]
            if calls:
                # A stage that is stuck in a long operation is killed all the same.
                ray.wait(calls, num_returns=len(calls), timeout=3)
            for stage in stages:
                ray.kill(stage)
            if self._group is not None:
                remove_placement_group(self._group)
        self._group = None

    # ------------------------------------------------------------------ inside

    def _place(self) -> None:
        bundles = [dict(each) for each in self._resources]
        self._group = placement_group(bundles, strategy=self._strategy)
        try:
            ray.get(self._group.ready(), timeout=self._wait_s)
        except GetTimeoutError:
            raise PlacementError(self._shortage()) from None
        for k, each in enumerate(self._resources):
            other = {name: n for name, n in each.items() if name not in ("CPU", "GPU")}
            self._stages.append(
                StageActor.options(
                    num_cpus=each.get("CPU", 0),
                    num_gpus=each.get("GPU", 0),
                    resources=other,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        self._group, placement_group_bundle_index=k
                    ),
                ).remote(k, self._threads, self._seed, self._tags)
            )
        self.homes = self.ask(stage.home.remote() for stage in self._stages)

    def _shortage(self) -> str:
        needed: dict[str, float] = {}
        for each in self._resources:
            for name, amount in each.items():
                needed[name] = needed.get(name, 0) + amount
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        lines = [
            f"{name}: {amount:g} needed, {total.get(name, 0):g} in the cluster, "
            f"{free.get(name, 0):g} free"
            for name, amount in needed.items()
        ]
        largest = {name: max(each.get(name, 0) for each in self._resources) for name in needed}
        return (
            f"{len(self._resources)} stages did not get their resources within {self._wait_s:g} s"
            f" ({'; '.join(lines)}; one stage needs "
            f"{', '.join(f'{amount:g} {name}' for name, amount in largest.items())} on one node): "
            "ask for fewer stages or less for each, wait longer, or add nodes"
        )

    @staticmethod
    def _answer(call: Any) -> Any:
        try:
            return ray.get(call)
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from None
        except (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError) as error:
            raise StageLostError(f"a stage's process died: {_first_line(error)}") from error

    def _check_alive(self) -> None:
        """Raise that a stage died if one did: its neighbours may miss the link to it first."""
        pings = [stage.alive.remote() for stage in self._stages]
        done, _ = ray.wait(pings, num_returns=len(pings), timeout=_NOTICE_S)
        self.ask(done)

    def _remains(self) -> list[dict[str, int]]:
        return self.ask(stage.remains.remote() for stage in self._stages)

    def _transport(self, link: Link) -> str:
        same = self.homes[link.source].node_id == self.homes[link.target].node_id
        return "ipc" if same else "tcp"

    def _carriers(
        self, links: Sequence[Link], wire: WireKind, asked: CarrierChoice
    ) -> list[CarrierKind]:
        places = [(home.node_id, home.gpu) for home in self.homes]
        if wire == "ray" and asked == "auto":
            asked = "inline"
        return [carrier_of(link, places[link.source], places[link.target], asked) for link in links]

    def _look(self) -> Look:
        looks = self.ask(stage.progress.remote() for stage in self._stages)
        return Look(
            batches=looks[-1][0],
            rows=[row for _, rows, _ in looks for row in rows],
            written=[part for _, _, parts in looks for part in parts],
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
