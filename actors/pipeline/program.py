"""The program of a stage, where its loop stands in it, and the instructions that come out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actors.units import Unit

__all__ = [
    "Backward",
    "Box",
    "Compare",
    "Correct",
    "Evaluate",
    "Feedback",
    "Finish",
    "Forward",
    "Instruction",
    "LoopState",
    "PassToken",
    "Recheck",
    "Report",
    "Snapshot",
    "StageProgram",
    "StartDrain",
    "Update",
]

Box = Literal["features", "labels", "gradients"]
Feedback = Literal["error", "target", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgram:
    """The numbers that make a method out of the loop.

    Args:
        stage: 0 at the input.
        stages: K.
        delay: D, units between a forward and its backward; None: until the window ends.
        accumulate: M, batches per window.
        flush: empty the pipeline at the end of every window (synchronous methods).
        barrier: run in lock step.
        offset: lock step only: ticks that this stage lags behind stage 0.
        span: lock step only: ticks that the run has more than batches.
        report_every: batches between two reports; 0: at the ends of epochs only.
        link_delay: how much of `delay` belongs to the link above: gradients that are under way on
            it whenever both its ends have the same number of batches behind them.
        timeline: batches of the run whose timeline is kept.
        feedback: what comes back from above: the error gradient that a backward needs, a target
            that its estimate is corrected by, `link_delay` units later, or nothing.
        labelled: whether the stage needs the labels of training batches; the last always does.
    """

    stage: int
    stages: int
    delay: int | None
    link_delay: int = 0
    accumulate: int = 1
    flush: bool = False
    barrier: bool = False
    offset: int = 0
    span: int = 0
    report_every: int = 0
    timeline: int = 0
    feedback: Feedback = "error"
    labelled: bool = False

    @property
    def first(self) -> bool:
        """Whether the stage has the input."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Whether the stage has the loss."""
        return self.stage == self.stages - 1

    @property
    def corrected(self) -> bool:
        """Whether the stage's backwards are estimates that are corrected later."""
        return self.feedback == "target" and not self.last


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """Where a loop stands between two batches.

    Args:
        batches: whose forward has been released.
        applied: units whose backward has been released.
        open: units between the two, the oldest first.
        uncorrected: units whose backward is an estimate that has not been corrected yet.
        window: number of the window that is being filled.
        in_window: indices n that it has seen.
    """

    batches: int = 0
    applied: int = 0
    open: tuple[Unit, ...] = ()
    uncorrected: tuple[Unit, ...] = ()
    window: int = 0
    in_window: int = 0

    def under_way(self, program: StageProgram) -> tuple[Unit, ...]:
        """Return the units whose gradient the stage above has sent: the oldest of the open ones,
        and all that wait for a correction only.
        """
        if program.feedback != "error":
            return self.uncorrected
        above = 0 if program.delay is None else program.delay - program.link_delay
        return self.open[: max(0, len(self.open) - above)]


@dataclass(frozen=True, slots=True)
class Forward:
    """Compute the features of a unit and pass them up."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class Backward:
    """Back-propagate a unit and pass the error gradient down."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class Correct:
    """Learn from the error gradient of a unit that has gone backward without it."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class Recheck:
    """Compute the features of a unit anew, for figures, and pass them up."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class Compare:
    """Back-propagate a recheck and pass the error gradient down.

    `due` tells whether the stage's next backward is of the same unit.
    """

    unit: Unit
    due: bool


@dataclass(frozen=True, slots=True)
class Update:
    """Close the window with this number."""

    window: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Compute the features of a test batch and pass them up."""

    index: int


@dataclass(frozen=True, slots=True)
class StartDrain:
    """Tell the stage above that no training batch follows."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Save the stage as it is with these batches behind it, and pass the marker up."""

    state: LoopState


@dataclass(frozen=True, slots=True)
class Report:
    """Report the figures since the last report; `epoch` is None within an epoch."""

    step: int
    epoch: int | None


@dataclass(frozen=True, slots=True)
class PassToken:
    """Lock step: say that this side has ended tick `tick`, towards the stage below or above."""

    tick: int
    towards: Literal["below", "above"]


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing follows."""


Instruction = (
    Forward
    | Backward
    | Correct
    | Recheck
    | Compare
    | Update
    | Evaluate
    | StartDrain
    | Snapshot
    | Report
    | PassToken
    | Finish
)
