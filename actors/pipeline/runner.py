"""One stage at work: messages into the loop, its instructions into calls of the rule.

No Ray in here: the same runner runs in an actor, and K of them in one process for a test.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from actors.errors import MechanismError, StageError
from actors.pipeline.boxes import Boxes
from actors.pipeline.program import (
    Backward,
    Box,
    Compare,
    Correct,
    Evaluate,
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
from actors.pipeline.protocols import StageRule
from actors.pipeline.snapshot import StageSnapshots, gradients_of, loop_of
from actors.pipeline.stage import StageLoop
from actors.pipeline.stage_meter import StageMeter
from actors.pipeline.timeline import SpanKind
from actors.units import Tensors, Unit
from actors.user_errors import describe_error, with_traceback
from actors.wires.messages import Kind, Message

__all__ = ["StageRunner"]

T = TypeVar("T")

_SPANS: dict[type[Instruction], SpanKind] = {
    Forward: "forward",
    Backward: "backward",
    Update: "update",
    Evaluate: "evaluate",
}
"""Instructions that the timeline shows."""


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
        self._rule = rule
        self._boxes = boxes
        self._emit = emit
        self._meter = StageMeter(boxes, program.timeline)
        self._timeline = self._meter.timeline
        self._snapshots = None if save is None else StageSnapshots(program, save)
        self._payload: dict[tuple[Box, Kind, int, int], Tensors] = {}
        self._todo: list[Instruction] = self.loop.start()
        if part is not None:
            self._restore(part)

    @property
    def blocked_s(self) -> float:
        """Time waited for messages and credits since the start, in seconds."""
        return self._meter.blocked_s

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

    def close(self) -> None:
        """Close every box."""
        self._boxes.close()

    # ------------------------------------------------------------------ boxes

    def _take(self, name: Box, timeout_s: float) -> Message | None:
        box = self._boxes.inbox(name)
        if box is None:
            raise MechanismError(f"stage {self.loop.program.stage} has no box for {name}")
        started = time.perf_counter()
        message = box.take(timeout_s)
        if box is not self._boxes.features_in or not self.loop.program.first:
            self._meter.waited(started)
        if message is not None and message.tensors:
            self._payload[name, message.kind, message.index, message.part] = message.tensors
            if self._snapshots is not None and name == "gradients" and message.kind is Kind.BATCH:
                self._snapshots.took(message.index, message.part, message.tensors)
        return message

    def _may_send(self, instruction: Instruction, timeout_s: float) -> bool:
        box = self._boxes.outbox(instruction)
        if box is None:
            return True
        started = time.perf_counter()
        ready = box.ready(timeout_s)
        self._meter.waited(started)
        return ready

    # ------------------------------------------------------------------ instructions

    def _carry_out(self, instruction: Instruction) -> None:
        started = time.perf_counter() if self._timeline.open else 0.0
        message = self._done(instruction)
        if self._timeline.open and (kind := _SPANS.get(type(instruction))):
            batch = instruction.unit.batch if isinstance(instruction, (Forward, Backward)) else None
            self._timeline.add(kind, batch, started, time.perf_counter())
        out = self._boxes.outbox(instruction)
        if out is not None and message is not None:
            out.put(message)

    def _done(self, instruction: Instruction) -> Message | None:
        """Do what an instruction says; return the message that follows from it."""
        rule = self._rule
        if isinstance(instruction, Forward):
            unit = instruction.unit
            return self._up(Kind.BATCH, unit, "forward", functools.partial(rule.forward, unit))
        if isinstance(instruction, Backward):
            unit = instruction.unit
            found = self._down(Kind.BATCH, unit, "backward", functools.partial(rule.backward, unit))
            return Message.of(unit, found)
        if isinstance(instruction, Correct):
            unit = instruction.unit
            self._down(Kind.BATCH, unit, "correction", functools.partial(rule.correct, unit))
            return None
        if isinstance(instruction, Recheck):
            unit = instruction.unit
            return self._up(Kind.RECHECK, unit, "recheck", functools.partial(rule.recheck, unit))
        if isinstance(instruction, Compare):
            unit = instruction.unit
            compare = functools.partial(rule.compare, unit, due=instruction.due)
            found = self._down(Kind.RECHECK, unit, "recheck", compare)
            return Message.of(unit, found, Kind.RECHECK)
        if isinstance(instruction, Update):
            with self._story(f"update {instruction.window}", None, ()):
                rule.update()
            return None
        if isinstance(instruction, Evaluate):
            self._meter.testing()
            return self._up(Kind.EVALUATE, Unit(instruction.index), "evaluation", rule.evaluate)
        if isinstance(instruction, StartDrain):
            return Message(Kind.DRAIN, self.loop.batches)
        if isinstance(instruction, Snapshot):
            self._snapshot(instruction)
            return Message(Kind.CHECKPOINT, instruction.state.batches)
        if isinstance(instruction, Report):
            self._report(instruction)
            return None if instruction.epoch is None else Message(Kind.EPOCH, instruction.epoch)
        if isinstance(instruction, PassToken):
            return Message(Kind.TOKEN, instruction.tick)
        # Finish is left.
        self.finished = True
        return Message(Kind.FINISH, self.loop.batches)

    def _up(
        self, kind: Kind, unit: Unit, doing: str, compute: Callable[[Tensors, Tensors], Tensors]
    ) -> Message:
        """Compute with the features and labels of a unit; return what goes to the stage above."""
        inputs = self._payload.pop(("features", kind, unit.batch, unit.part))
        labels = self._payload.pop(("labels", kind, unit.batch, unit.part), ())
        with self._story(doing, unit, inputs):
            return Message.of(unit, compute(inputs, labels), kind)

    def _down(self, kind: Kind, unit: Unit, doing: str, compute: Callable[[Tensors], T]) -> T:
        """Compute with the gradients of a unit that have come from the stage above, if any."""
        gradients = self._payload.pop(("gradients", kind, unit.batch, unit.part), ())
        with self._story(doing, unit, gradients):
            return compute(gradients)

    def _report(self, instruction: Report) -> None:
        row = {
            "stage": self.loop.program.stage,
            "step": instruction.step,
            "epoch": instruction.epoch,
            "in_flight": self.loop.in_flight,
            **self._meter.take(),
        }
        self._emit({**row, **self._rule.report()})

    def _story(self, doing: str, unit: Unit | None, tensors: Tensors) -> _Story:
        return _Story(self.loop.program.stage, doing, unit, tensors)

    # ------------------------------------------------------------------ checkpoints

    def _snapshot(self, instruction: Snapshot) -> None:
        if self._snapshots is None:
            return
        content: dict[str, Any] = {
            "stage": self.loop.program.stage,
            "rule": self._rule.save(),
            "figures": self._meter.save(),
        }
        source = self._boxes.source()
        if source is not None:
            content["source"] = source.state()
        waiting = {
            (batch, part): tensors
            for (box, kind, batch, part), tensors in self._payload.items()
            if box == "gradients" and kind is Kind.BATCH
        }
        self._snapshots.begin(instruction.state, content, waiting)

    def _restore(self, part: Mapping[str, Any]) -> None:
        under_way = [
            Message(Kind.BATCH, batch, tensors, part=piece)
            for (batch, piece), tensors in gradients_of(part).items()
        ]
        for message in under_way:
            self._payload["gradients", message.kind, message.index, message.part] = message.tensors
        self._rule.restore(part["rule"])
        self._meter.restore(part["figures"], under_way)


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
        told = StageError(
            f"stage {self._stage} failed in the {self._doing}{at}"
            + (f" with {shapes}" if shapes else "")
            + f": {describe_error(error)}"
        )
        raise with_traceback(told, error) from error
