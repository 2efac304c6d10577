"""The Ray shell of a stage: it opens boxes, runs the runner, answers questions. Nothing else."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import MechanismError
from actors.groups.member import GROUPS, Member, has_gpu
from actors.groups.part_writer import Keeping, resumed
from actors.groups.story import told
from actors.pipeline.boxes import Boxes
from actors.pipeline.prefetch import Prefetcher
from actors.pipeline.probes import MessageTimes, StageTimes, echo, probe, time_stage
from actors.pipeline.program import StageProgram
from actors.pipeline.protocols import StageRule
from actors.pipeline.ray_metrics import StageMetrics
from actors.pipeline.runner import StageRunner
from actors.pipeline.source import LossShares, Source
from actors.units import Tensors
from actors.wires.mailbox import FeatureBox, Inbox, Outbox
from actors.wires.messages import Message

__all__ = ["Feed", "RuleFactory", "StageActor", "StageWorker"]

RuleFactory = Callable[[], StageRule]
_CREDITS_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What stage 0 reads, see `actors.pipeline.source.Source`."""

    train: Iterable[Any]
    test: Iterable[Any] | None
    epochs: int
    parts: int
    loss_shares: LossShares | None = None
    evaluate_every: int = 1
    recheck_every: int = 0
    recheck_ages: tuple[int, ...] = ()
    seed: int = 0
    checkpoints: CheckpointPlan = field(default_factory=CheckpointPlan)

    @property
    def saves(self) -> bool:
        """Whether the run keeps checkpoints."""
        return self.checkpoints.on


class StageWorker(Member):
    """One stage of a pipeline, in the process of its actor.

    Args:
        stage: 0 at the input.
        threads: of torch's operators in this process.
        seed: of the process's global generators, which a user's batches may draw from.
        tags: `method` and `run`, of the stage's metrics.
    """

    def __init__(
        self, stage: int, threads: int, seed: int, tags: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(stage, f"stage {stage}", threads, seed)
        self._rule: StageRule | None = None
        self._runner: StageRunner | None = None
        self._ending = threading.Event()
        self._saving = threading.Event()
        self._metrics = StageMetrics(stage, tags or {})

    # ------------------------------------------------------------------ work

    def load(self, rule: RuleFactory) -> None:
        """Build the stage's rule."""
        torch.set_num_threads(self._threads)
        with told(self._title, "its optimiser and schedule"):
            self._rule = rule()

    def measure(self, inputs: Tensors, repeats: int) -> StageTimes:
        """Time the stage, see `actors.pipeline.probes`."""
        return time_stage(self._its_rule(), inputs, repeats)

    def measure_blocks(
        self, blocks: Sequence[RuleFactory], inputs: Sequence[Tensors], repeats: int
    ) -> list[StageTimes]:
        """Time each block of a chain as a stage, on this stage's device."""
        return [
            time_stage(block(), given, repeats) for block, given in zip(blocks, inputs, strict=True)
        ]

    def time_messages(self, payload: Tensors, repeats: int, pause_s: float) -> MessageTimes:
        """Return what a message with `payload` to the stage above and back costs."""
        return probe(
            functools.partial(self._put, "features"),
            functools.partial(self._take, "gradients"),
            payload,
            repeats,
            pause_s,
        )

    def echo_messages(self, repeats: int) -> None:
        """Send what `time_messages` of the stage below sends back to it."""
        put = functools.partial(self._put, "gradients")
        echo(put, functools.partial(self._take, "features"), repeats)

    def run(self, program: StageProgram, feed: Feed | None, keeping: Keeping | None) -> None:
        """Run the stage to its end, or until `stop`."""
        part = resumed(keeping)
        with self._keeping(keeping) as writer:
            self._runner = StageRunner(
                program, self._its_rule(), self._boxes(feed, part), self._rows.append, writer, part
            )
            self._runner.run(self._stop.is_set)

    def state(self) -> dict[str, Any]:
        """Return the state_dict of the stage."""
        return dict(self._its_rule().state())

    def remains(self) -> dict[str, int]:
        """Return what is left in boxes and loop after a run: nothing if it ended well."""
        return {} if self._runner is None else self._runner.remains(_CREDITS_S)

    @ray.method(concurrency_group="control")
    def end(self) -> None:
        """Let the run end before the next training batch that this stage reads, and drain."""
        self._ending.set()

    @ray.method(concurrency_group="control")
    def save(self) -> None:
        """Let the next batch that this stage reads come behind a checkpoint."""
        self._saving.set()

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, list[dict[str, Any]], list[tuple[int, Any]]]:
        """Return how many batches have entered the stage, and what is new since the last call:
        rows, and parts of checkpoints, each with its step.
        """
        rows, written = self._news()
        if self._runner is None:
            return 0, rows, written
        self._metrics.publish(self._runner, rows)
        return self._runner.loop.batches, rows, written

    # ------------------------------------------------------------------ inside

    def _boxes(self, feed: Feed | None, part: Mapping[str, Any] | None) -> Boxes:
        features: FeatureBox
        if feed is None:
            features = self._its_inbox("features")
        else:
            # Only the first stage sends labels, to every stage that needs them.
            outboxes = sorted(self._outboxes.items())
            *local_labels, labels = [each for (box, _), each in outboxes if box == "labels"]
            source = Source(
                feed.train,
                feed.test,
                epochs=feed.epochs,
                parts=feed.parts,
                loss_shares=feed.loss_shares,
                labels=labels,
                local_labels=local_labels,
                evaluate_every=feed.evaluate_every,
                recheck_every=feed.recheck_every,
                recheck_ages=feed.recheck_ages,
                seed=feed.seed,
                checkpoints=feed.checkpoints,
                start=None if part is None else part["source"],
                ends=self._ending.is_set,
                saves=self._saving,
            )
            features = self._ahead(source)
        targets = self._inbox("labels")
        return Boxes(
            features_in=features,
            labels_in=None if targets is None else self._ahead(targets),
            gradients_in=self._inbox("gradients"),
            features_out=self._outbox("features"),
            gradients_out=self._outbox("gradients"),
        )

    def _ahead(self, box: FeatureBox) -> FeatureBox:
        """Return a box whose batches of the host are on their way to the GPU, if there is one."""
        return Prefetcher(box, self._copies()) if has_gpu() else box

    def _put(self, box: str, message: Message) -> None:
        while not self._its_outbox(box).ready(1.0):
            self._check_stopped()
        self._its_outbox(box).put(message)

    def _take(self, box: str) -> Message:
        while (message := self._its_inbox(box).take(1.0)) is None:
            self._check_stopped()
        return message

    def _its_inbox(self, box: str) -> Inbox:
        found = self._inbox(box)
        if found is None:
            raise MechanismError(f"{self._title} has no box for {box}: call listen first")
        return found

    def _its_outbox(self, box: str) -> Outbox:
        found = self._outbox(box)
        if found is None:
            raise MechanismError(f"{self._title} has no box for {box}: call connect first")
        return found

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise MechanismError(f"{self._title} was stopped")

    def _its_rule(self) -> StageRule:
        if self._rule is None:
            raise MechanismError(f"{self._title} has no rule yet: call load first")
        return self._rule


StageActor: Any = ray.remote(concurrency_groups=GROUPS)(StageWorker)  # type: ignore[call-overload]
"""`StageWorker` as a Ray actor: options, then `remote(stage, threads, seed, tags)`."""
