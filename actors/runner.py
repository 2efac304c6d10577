"""One stage at work: messages into the loop, its instructions into calls of the rule.

No Ray in here: the same runner runs in an actor, and K of them in one process for a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.errors import MechanismError, StageError
from actors.mailbox import FeatureBox, Outbox
from actors.messages import Kind, Message, size_bytes
from actors.prefetch import Prefetcher
from actors.program import (
    Backward,
    Box,
    Compare,
    Correct,
    Evaluate,
    Finish,
    Forward,
    Instruction,
    PassToken,
    Recheck,
    Report,
    Snapshot,
    StageProgram,
    StartDrain,
    Update,
)
from actors.protocols import StageRule, Tensors, Unit
from actors.snapshot import StageSnapshot, gradients_of, loop_of
from actors.source import Source
from actors.stage import StageLoop
from actors.timeline import SpanKind, Timeline

__all__ = ["Boxes", "StageRunner"]


_SPANS: dict[type[Instruction], SpanKind] = {
    Forward: "forward",
    Backward: "backward",
    Update: "update",
    Evaluate: "evaluate",
}
"""Instructions that the timeline shows."""


@dataclass(slots=True, kw_only=True)
class Boxes:
    """The boxes of one stage. Stage 0 has nothing below it, the last stage nothing above."""

    features_in: FeatureBox
    labels_in: FeatureBox | None = None
    gradients_in: FeatureBox | None = None
    features_out: Outbox | None = None
    gradients_out: Outbox | None = None

    def named(self) -> dict[str, FeatureBox | Outbox]:
        """Return the boxes that are there."""
        every: dict[str, FeatureBox | Outbox | None] = {
            "features_in": self.features_in,
            "labels_in": self.labels_in,
            "gradients_in": self.gradients_in,
            "features_out": self.features_out,
            "gradients_out": self.gradients_out,
        }
        return {name: box for name, box in every.items() if box is not None}


@dataclass(slots=True)
class _Clock:
    """Where the time since the last report went, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    blocked_s: float = 0.0
    evaluating_since: float | None = None
    evaluated_s: float = 0.0

    def trained_s(self) -> float:
        return time.perf_counter() - self.started - self.evaluated_s


class StageRunner:
    """Run one stage to its end.

    Args:
        program: the numbers of this stage.
        rule: what is computed.
        boxes: where messages come from and go to.
        emit: takes each report, a dictionary with `stage`, `step`, `epoch` and figures, and the
            new spans of the stage's `timeline` while there are any.
        save: takes each part of a checkpoint, complete, with the number of batches behind it.
        part: from `save`, where to go on from; the source, at stage 0, must be of it too.
    """

    def __init__(
        self,
        program: StageProgram,
        rule: StageRule,
        boxes: Boxes,
        emit: Callable[[dict[str, Any]], None],
        save: Callable[[int, dict[str, Any]], None] | None = None,
        part: Mapping[str, Any] | None = None,
    ) -> None:
        self.loop = StageLoop(program, None if part is None else loop_of(part))
        self.finished = False
        self.blocked_s = 0.0
        """Time waited for messages and credits since the start."""
        self._rule = rule
        self._boxes = boxes
        self._emit = emit
        self._save = save
        self._saving: list[StageSnapshot] = []
        self._payload: dict[tuple[Box, Kind, int, int], Tensors] = {}
        self._todo: list[Instruction] = self.loop.start()
        self._started = time.perf_counter()
        self._clock = _Clock()
        self._timeline = Timeline(program.timeline)
        self._reported: dict[str, tuple[float, float]] = {}
        if part is not None:
            self._restore(part)

    def advance(self, timeout_s: float = 0.0) -> bool:
        """Do what can be done, waiting up to `timeout_s` for a message or a credit.

        Returns:
            Whether anything was done.

        Raises:
            StageError: the rule failed; the message tells at which batch, with which shapes.
        """
        moved = False
        while self._todo:
            if not self._may_send(self._todo[0], timeout_s):
                return moved
            self._carry_out(self._todo.pop(0))
            moved = True
        if self.loop.awaits is not None:
            message = self._take(self.loop.awaits, timeout_s)
            if message is not None:
                self._todo.extend(self.loop.arrived(self.loop.awaits, message))
                moved = True
        return moved

    def run(self, stopped: Callable[[], bool], patience_s: float = 0.2) -> None:
        """Run until the end, or until `stopped` says so; it is asked every `patience_s`."""
        while not self.finished and not stopped():
            self.advance(patience_s)

    def waiting_messages(self) -> int:
        """Return how many messages lie in the stage's inboxes."""
        named = self._boxes.named()
        return sum(box.statistics.depth for name, box in named.items() if name.endswith("_in"))

    def close(self) -> None:
        """Close every box."""
        for box in self._boxes.named().values():
            box.close()

    def _take(self, name: Box, timeout_s: float) -> Message | None:
        box = {
            "features": self._boxes.features_in,
            "labels": self._boxes.labels_in,
            "gradients": self._boxes.gradients_in,
        }[name]
        if box is None:
            raise MechanismError(f"stage {self.loop.program.stage} has no box for {name}")
        started = time.perf_counter()
        message = box.take(timeout_s)
        if box is not self._boxes.features_in or not self.loop.program.first:
            self._waited(started)
        if message is not None and message.tensors:
            self._payload[name, message.kind, message.index, message.part] = message.tensors
            if self._saving and name == "gradients":
                self._took(message.index, message.part, message.tensors)
        return message

    def _outbox(self, instruction: Instruction) -> Outbox | None:
        if isinstance(instruction, (Backward, Compare)):
            return self._boxes.gradients_out
        if isinstance(instruction, PassToken) and instruction.towards == "below":
            return self._boxes.gradients_out
        if isinstance(instruction, Report) and instruction.epoch is None:
            return None
        if isinstance(instruction, (Correct, Update)):
            return None
        return self._boxes.features_out

    def _may_send(self, instruction: Instruction, timeout_s: float) -> bool:
        box = self._outbox(instruction)
        if box is None:
            return True
        started = time.perf_counter()
        ready = box.ready(timeout_s)
        self._waited(started)
        return ready

    def _waited(self, started: float) -> None:
        ended = time.perf_counter()
        self._clock.blocked_s += ended - started
        self.blocked_s += ended - started
        if self._timeline.open:
            self._timeline.add("waiting", None, started, ended)

    def _carry_out(self, instruction: Instruction) -> None:
        out = self._outbox(instruction)
        message: Message | None = None
        started = time.perf_counter() if self._timeline.open else 0.0
        if isinstance(instruction, Forward):
            unit = instruction.unit
            inputs = self._payload.pop(("features", Kind.BATCH, unit.batch, unit.part))
            labels = self._payload.pop(("labels", Kind.BATCH, unit.batch, unit.part), ())
            with self._story("forward", unit, inputs):
                message = Message.of(unit, self._rule.forward(unit, inputs, labels))
        elif isinstance(instruction, Backward):
            unit = instruction.unit
            gradients = self._payload.pop(("gradients", Kind.BATCH, unit.batch, unit.part), ())
            with self._story("backward", unit, gradients):
                message = Message.of(unit, self._rule.backward(unit, gradients))
        elif isinstance(instruction, Correct):
            unit = instruction.unit
            gradients = self._payload.pop(("gradients", Kind.BATCH, unit.batch, unit.part), ())
            with self._story("correction", unit, gradients):
                self._rule.correct(unit, gradients)
        elif isinstance(instruction, Recheck):
            message = self._recheck(instruction.unit)
        elif isinstance(instruction, Compare):
            message = self._compare(instruction)
        elif isinstance(instruction, Update):
            with self._story(f"update {instruction.window}", None, ()):
                self._rule.update()
        elif isinstance(instruction, Evaluate):
            message = self._evaluate(instruction.index)
        elif isinstance(instruction, StartDrain):
            message = Message(Kind.DRAIN, self.loop.batches)
        elif isinstance(instruction, Snapshot):
            self._snapshot(instruction)
            message = Message(Kind.CHECKPOINT, instruction.state.batches)
        elif isinstance(instruction, Report):
            self._report(instruction)
            if instruction.epoch is not None:
                message = Message(Kind.EPOCH, instruction.epoch)
        elif isinstance(instruction, PassToken):
            message = Message(Kind.TOKEN, instruction.tick)
        elif isinstance(instruction, Finish):
            self.finished = True
            message = Message(Kind.FINISH, self.loop.batches)
        if self._timeline.open and (kind := _SPANS.get(type(instruction))):
            batch = instruction.unit.batch if isinstance(instruction, (Forward, Backward)) else None
            self._timeline.add(kind, batch, started, time.perf_counter())
        if out is not None and message is not None:
            out.put(message)

    def _recheck(self, unit: Unit) -> Message:
        inputs = self._payload.pop(("features", Kind.RECHECK, unit.batch, unit.part))
        labels = self._payload.pop(("labels", Kind.RECHECK, unit.batch, unit.part), ())
        with self._story("recheck", unit, inputs):
            return Message.of(unit, self._rule.recheck(unit, inputs, labels), Kind.RECHECK)

    def _compare(self, instruction: Compare) -> Message:
        unit = instruction.unit
        gradients = self._payload.pop(("gradients", Kind.RECHECK, unit.batch, unit.part), ())
        with self._story("recheck", unit, gradients):
            found = self._rule.compare(unit, gradients, due=instruction.due)
            return Message.of(unit, found, Kind.RECHECK)

    def _evaluate(self, index: int) -> Message:
        if self._clock.evaluating_since is None:
            self._clock.evaluating_since = time.perf_counter()
        inputs = self._payload.pop(("features", Kind.EVALUATE, index, 0))
        labels = self._payload.pop(("labels", Kind.EVALUATE, index, 0), ())
        with self._story("evaluation", Unit(index), inputs):
            return Message(Kind.EVALUATE, index, self._rule.evaluate(inputs, labels))

    def _report(self, instruction: Report) -> None:
        clock = self._clock
        if clock.evaluating_since is not None:
            clock.evaluated_s += time.perf_counter() - clock.evaluating_since
        row: dict[str, Any] = {
            "stage": self.loop.program.stage,
            "step": instruction.step,
            "epoch": instruction.epoch,
            "time_s": time.perf_counter() - self._started,
            "trained_s": clock.trained_s(),
            "blocked_s": clock.blocked_s,
            "in_flight": self.loop.in_flight,
            "mailbox_bytes_peak": sum(
                box.statistics.peak_bytes
                for box in (self._boxes.features_out, self._boxes.gradients_out)
                if box is not None
            ),
        }
        for name, box in self._boxes.named().items():
            figures = box.statistics
            row[f"{name}_messages"], row[f"{name}_bytes"] = self._since_report(name)
            row[f"{name}_peak_depth"] = figures.peak_depth
            self._reported[name] = (figures.messages, figures.bytes)
        self._clock = _Clock()
        if spans := self._timeline.take():
            row["timeline"] = spans
        self._emit({**row, **self._rule.report()})

    # ------------------------------------------------------------------ checkpoints

    def _snapshot(self, instruction: Snapshot) -> None:
        if self._save is None:
            return
        content: dict[str, Any] = {
            "stage": self.loop.program.stage,
            "rule": self._rule.save(),
            "figures": {
                "ran_s": time.perf_counter() - self._started,
                "trained_s": self._clock.trained_s(),
                "blocked_s": self._clock.blocked_s,
                "boxes": {name: self._since_report(name) for name in self._boxes.named()},
            },
        }
        source = self._boxes.features_in
        if isinstance(source, Prefetcher):
            source = source.box
        if isinstance(source, Source):
            content["source"] = source.state()
        snapshot = StageSnapshot(self.loop.program, instruction.state, content)
        self._saving.append(snapshot)
        # What has been taken already waits for its turn.
        for (box, kind, batch, part), tensors in self._payload.items():
            if box == "gradients" and kind is Kind.BATCH:
                snapshot.took(batch, part, tensors)
        self._saved()

    def _took(self, batch: int, part: int, gradients: Tensors) -> None:
        for snapshot in self._saving:
            snapshot.took(batch, part, gradients)
        self._saved()

    def _saved(self) -> None:
        while self._saving and self._saving[0].complete and self._save is not None:
            snapshot = self._saving.pop(0)
            self._save(snapshot.step, snapshot.content())

    def _restore(self, part: Mapping[str, Any]) -> None:
        under_way = [
            Message(Kind.BATCH, batch, tensors, part=piece)
            for (batch, piece), tensors in gradients_of(part).items()
        ]
        for message in under_way:
            self._payload["gradients", message.kind, message.index, message.part] = message.tensors
        self._rule.restore(part["rule"])
        now, figures = time.perf_counter(), part["figures"]
        self._started = now - figures["ran_s"]
        self._clock = _Clock(started=now - figures["trained_s"], blocked_s=figures["blocked_s"])
        self._reported = {
            name: (-messages, -size) for name, (messages, size) in figures["boxes"].items()
        }
        if under_way:
            messages, size = self._reported["gradients_in"]
            sizes = sum(size_bytes(message) for message in under_way)
            self._reported["gradients_in"] = (messages - len(under_way), size - sizes)

    def _since_report(self, name: str) -> tuple[float, float]:
        figures = self._boxes.named()[name].statistics
        messages, size = self._reported.get(name, (0, 0))
        return figures.messages - messages, figures.bytes - size

    def _story(self, doing: str, unit: Unit | None, tensors: Tensors) -> _Story:
        return _Story(self.loop.program.stage, doing, unit, tensors)

    def remains(self, timeout_s: float = 0.0) -> dict[str, int]:
        """Return what is left in boxes and loop by name: nothing after a run that ended well.

        Args:
            timeout_s: how long the last credits of each outbox may be under way.
        """
        for box in (self._boxes.features_out, self._boxes.gradients_out):
            if box is not None:
                box.settle(timeout_s)
        left = {name: box.statistics.depth for name, box in self._boxes.named().items()}
        left |= {"payloads": len(self._payload), "in_flight": self.loop.in_flight}
        return {name: count for name, count in left.items() if count}


class _Story:
    """Adds stage, batch and shapes to whatever the rule raises."""

    def __init__(self, stage: int, doing: str, unit: Unit | None, tensors: Tensors) -> None:
        self._stage, self._doing, self._unit, self._tensors = stage, doing, unit, tensors

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: object) -> None:
        if not isinstance(error, Exception) or getattr(error, "tells_its_story", False):
            return
        at = "" if self._unit is None else f" of batch {self._unit.batch}"
        shapes = [None if t is None else (tuple(t.shape), str(t.dtype)) for t in self._tensors]
        raise StageError(
            f"stage {self._stage} failed in the {self._doing}{at}"
            + (f" with {shapes}" if shapes else "")
            + f": {type(error).__name__}: {error}"
        ) from error
