"""The loop of one stage: events in, instructions out. Plain Python, no clock, no tensors.

A stage runs, in this order and for n = 0, 1, …

    F(n)    B(n - D)    an update when its window of M batches is full

where D is the sum of the link delays above it. An operation is released when the message that it
needs has arrived, and never before its predecessor in this order, so that what a stage computes
does not depend on when messages come. That is the whole of asynchrony here: DDG is D = K-k,
ADL is D = 2(K-k), back-propagation is D = 0.

    time ─▶         K = 3, link delay 1 (DDG)
    stage 0, D=2    F0 F1 F2 B0 F3 B1 F4 B2 …          drain: B(N-2) B(N-1)
    stage 1, D=1       F0 F1 B0 F2 B1 F3 B2 …          drain: B(N-1)
    stage 2, D=0          F0 B0 F1 B1 F2 B2 …

After N batches the stage goes on counting n without F until every gradient is applied (*drain*);
a last partial window is closed. With `flush`, the pipeline empties at the end of every window
instead, so that no gradient meets an update: micro-batches of GPipe (D unbounded) and 1F1B
(D = K-k micro-batches).

Where a stage makes its error gradient itself (`feedback`), B(n) follows F(n) and waits for nothing:
it has a loss of its own (DGL, "none"), or an estimate (DNI, "target"), which C(n - d) corrects when
the gradient that it stands for has come over the link above, d units late:

    F(n)    B(n)    C(n - d)    an update when its window of M batches is full

and the drain makes the corrections that are left.

*Rechecks* are batches that go through all stages once more, up and at once down, between two
indices n, and only for figures: a group of them goes up whole, then down whole, for which the
stage waits while nothing else goes on in it.

*Checkpoints* are a marker among the features. At it every stage has the same n batches behind it,
so no features are under way, and of the gradients on a link just those that its delay stands for:
the stage below takes them into its own part of the checkpoint (Chandy and Lamport's cut). A loop
starts again from its `LoopState`; in lock step the ticks are then counted anew.

*Lock step* (`barrier`): all stages end tick i before any begins tick i+1, by tokens that travel
down to stage 0 and back up. Stages above a link of delay >= 2 run one tick behind the stage
below (ADL's hop), others in the same tick (DDG's locked forward).
"""

from __future__ import annotations

from collections import deque

from actors.errors import MailboxError
from actors.pipeline.program import (
    Backward,
    Box,
    Compare,
    Correct,
    Evaluate,
    Finish,
    Forward,
    Instruction,
    LoopState,
    PassToken,
    Recheck,
    Report,
    Snapshot,
    StageProgram,
    StartDrain,
    Update,
)
from actors.units import Unit
from actors.wires.messages import Kind, Message

__all__ = ["StageLoop"]

_Key = tuple[Box, Kind, int, int]


class StageLoop:
    """Turn arrivals into instructions, in the one order that the program allows.

    Call `start` once, then feed every message to `arrived`; each returns the instructions that may
    now be carried out, in order. `awaits` names the box without which nothing goes on; None when
    all is done.

    Args:
        program: the numbers of this stage.
        state: where to go on from; its gradients under way count as arrived. Default: the start.
    """

    def __init__(self, program: StageProgram, state: LoopState | None = None) -> None:
        state = state or LoopState()
        self.program = program
        self.awaits: Box | None = "features"
        self.batches = state.batches
        """Training batches whose forward has been released."""
        self.applied = state.applied
        """Units whose backward has been released."""
        self._stream: deque[Message] = deque()
        self._planned: deque[tuple[Instruction | None, tuple[_Key, ...]]] = deque()
        self._there: set[_Key] = {_gradient_of(unit) for unit in state.under_way(program)}
        self._open: deque[Unit] = deque(state.open)
        self._uncorrected: deque[Unit] = deque(state.uncorrected)
        self._rechecked: list[Unit] = []
        self._window = state.window
        self._in_window = state.in_window
        self._tick = 0
        self._finished = False
        for _ in range(program.offset if program.barrier else 0):
            self._plan_tick()

    @property
    def in_flight(self) -> int:
        """Units whose forward is released and whose backward is not."""
        return len(self._open)

    def start(self) -> list[Instruction]:
        """Return what may be done before any message: in lock step, the ticks of the lag."""
        return self._release()

    def arrived(self, box: Box, message: Message) -> list[Instruction]:
        """Take note of a message; return what may now be done, in order."""
        if box == "features" and message.kind is not Kind.TOKEN:
            self._stream.append(message)
        else:
            key = _key(box, message.kind, message.index, message.part)
            if key in self._there:
                raise MailboxError(f"stage {self.program.stage} got {key} twice")
            self._there.add(key)
        return self._release()

    def _release(self) -> list[Instruction]:
        released: list[Instruction] = []
        while not self._finished:
            if self._planned:
                instruction, needs = self._planned[0]
                missing = next((key for key in needs if key not in self._there), None)
                if missing is not None:
                    self.awaits = missing[0]
                    return released
                self._there.difference_update(needs)
                self._planned.popleft()
                if instruction is not None:
                    self._count(instruction)
                    released.append(instruction)
            elif self._stream:
                self._plan(self._stream.popleft())
            else:
                self.awaits = "features"
                return released
        self.awaits = None
        if self._there or self._stream or self._open or self._uncorrected:
            left = sorted(str(key) for key in self._there)
            raise MailboxError(f"stage {self.program.stage} finished, but these are left: {left}")
        return released

    def _count(self, instruction: Instruction) -> None:
        if isinstance(instruction, Forward):
            self._open.append(instruction.unit)
            self.batches = instruction.unit.batch + 1
        elif isinstance(instruction, Backward):
            self._open.popleft()
            self.applied += 1
        elif isinstance(instruction, Finish):
            self._finished = True

    # What a message of the stream stands for. Planning runs only when all planned before it is
    # released, so `self._open` is then the truth.

    def _plan(self, message: Message) -> None:
        training = message.kind in (Kind.BATCH, Kind.RECHECK)
        labels = (
            (_key("labels", message.kind, message.index, message.part),)
            if self.program.last or (self.program.labelled and training)
            else ()
        )
        if message.kind is Kind.BATCH:
            self._plan_forward(message.unit, labels)
        elif message.kind is Kind.RECHECK:
            self._plan_recheck(message.unit, labels)
        elif message.kind is Kind.EVALUATE:
            self._planned.append((Evaluate(message.index), labels))
        elif message.kind is Kind.EPOCH:
            self._planned.append((Report(self.batches, message.index), ()))
        elif message.kind is Kind.CHECKPOINT:
            self._planned.append((Snapshot(self._state()), ()))
        elif message.kind is Kind.DRAIN:
            self._planned.append((StartDrain(), ()))
            self._plan_drain()
        elif message.kind is Kind.FINISH:
            self._planned.append((Finish(), ()))
        else:
            raise MailboxError(f"stage {self.program.stage} got {message.kind!r} among features")

    def _state(self) -> LoopState:
        return LoopState(
            batches=self.batches,
            applied=self.applied,
            open=tuple(self._open),
            uncorrected=tuple(self._uncorrected),
            window=self._window,
            in_window=self._in_window,
        )

    def _plan_forward(self, unit: Unit, labels: tuple[_Key, ...]) -> None:
        program = self.program
        self._planned.append((Forward(unit), labels))
        waiting = [*self._open, unit]
        if program.delay is not None and len(waiting) > program.delay:
            self._plan_backward(waiting.pop(0))
        if program.corrected:
            self._uncorrected.append(unit)
            if len(self._uncorrected) > program.link_delay:
                self._plan_correction()
        if unit.part + 1 < unit.parts:
            return
        self._in_window += 1
        if self._in_window == program.accumulate:
            for late in waiting if program.flush else ():
                self._plan_backward(late)
            self._plan_update()
        if program.report_every and (unit.batch + 1) % program.report_every == 0:
            self._planned.append((Report(unit.batch + 1, None), ()))
        self._plan_tick()

    def _plan_recheck(self, unit: Unit, labels: tuple[_Key, ...]) -> None:
        """Recheck the units of a group; compare when its last one is up."""
        self._planned.append((Recheck(unit), labels))
        self._rechecked.append(unit)
        if len(self._rechecked) < unit.parts:
            return
        due = self.batches - (self.program.delay or 0)
        for each in self._rechecked:
            needs = () if self.program.last else (_gradient_of(each, Kind.RECHECK),)
            self._planned.append((Compare(each, each.batch == due), needs))
        self._rechecked = []

    def _plan_drain(self) -> None:
        """Go on counting n without a forward until every gradient is applied."""
        program = self.program
        late = list(self._open)
        if program.flush:
            for unit in late:
                self._plan_backward(unit)
        else:
            # With fewer batches than D the first turns still belong to batches of negative index.
            delay = program.delay or 0
            for turn in range(delay):
                if turn >= delay - len(late):
                    self._plan_backward(late[turn - (delay - len(late))])
                self._in_window += 1
                if self._in_window == program.accumulate:
                    self._plan_update()
                self._plan_tick()
        if self._in_window:
            self._plan_update()
        while self._uncorrected:
            self._plan_correction()
        if program.barrier:
            for _ in range(program.span - program.offset - (program.delay or 0)):
                self._plan_tick()

    def _plan_backward(self, unit: Unit) -> None:
        waits = self.program.feedback == "error" and not self.program.last
        self._planned.append((Backward(unit), (_gradient_of(unit),) if waits else ()))

    def _plan_correction(self) -> None:
        unit = self._uncorrected.popleft()
        self._planned.append((Correct(unit), (_gradient_of(unit),)))

    def _plan_update(self) -> None:
        self._planned.append((Update(self._window), ()))
        self._window += 1
        self._in_window = 0

    def _plan_tick(self) -> None:
        """Lock step: wait for all above, tell those below; wait for all below, tell those above."""
        if not self.program.barrier:
            return
        tick, first, last = self._tick, self.program.first, self.program.last
        ended = () if last else (_key("gradients", Kind.TOKEN, tick),)
        begun = () if first else (_key("features", Kind.TOKEN, tick),)
        self._planned.append((None if first else PassToken(tick, "below"), ended))
        self._planned.append((None if last else PassToken(tick, "above"), begun))
        self._tick += 1


def _gradient_of(unit: Unit, kind: Kind = Kind.BATCH) -> _Key:
    return _key("gradients", kind, unit.batch, unit.part)


def _key(box: Box, kind: Kind, index: int, part: int = 0) -> _Key:
    return (box, kind, index, part)
