"""What the parameter server's mechanism needs from an algorithm, which satisfies it structurally.

    server rule                                        worker rule, one a worker
    phase() ── what is asked for now ─────────────▶    begin(phase, opening tensors)
    answer(worker) ── the w of now ───────────────▶    work(task, w, piece) … message() ─┐
    apply(worker, message, staleness) ◀──────────────────────────────────────────────────┘
    close_phase() after the phase's last message

The same two objects run in Ray actors, in one process, and under a simulated clock. Time, waiting,
staleness, repeats, stragglers and losses are the mechanism's; what is computed is the rules'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from actors.units import Tensors

__all__ = ["Certificate", "Cut", "Phase", "ServerRule", "Task", "WorkerRule"]


class Phase(Protocol):
    """What the server asks its workers for, until its rule asks for something else."""

    @property
    def number(self) -> int:
        """Counted from 0 over the run."""
        ...

    @property
    def kind(self) -> str:
        """Which of the worker rule's computations, e.g. "full" or "inner" of AsySVRG."""
        ...

    @property
    def gather(self) -> bool:
        """Whether nothing is applied before the message of every worker is there, and then all of
        them in the workers' order: a synchronous round.
        """
        ...

    @property
    def messages(self) -> int | None:
        """Applied messages after which the phase ends; of a gather, rounds; None: never."""
        ...

    @property
    def pieces(self) -> int:
        """Pieces in which a worker computes a message; before each it takes the newest w that the
        server has broadcast.
        """
        ...


@dataclass(slots=True, kw_only=True)
class Task:
    """One piece of work for one worker.

    Args:
        phase: that it belongs to, with its fields as `Phase` has them.
        number: of the task, counted from 0 for each worker: draws are keyed by it. One whose
            message is discarded or lost is not given again.
        version: updates that the w of its answer has behind it.
    """

    phase: Phase
    number: int
    version: int


class Certificate(Protocol):
    """What one worker contributes to a certificate, of its own samples at one moment."""

    @property
    def values(self) -> Mapping[str, float]:
        """Sums over its samples by name, to be added up over the workers."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Vectors to be added up over the workers, by name."""
        ...


class ServerRule(Protocol):
    """The server's half of an algorithm. Called by one thread, in the order of application."""

    def phase(self) -> Phase:
        """Return what is asked for now; it changes in `close_phase` and `rewind` only."""
        ...

    def opening(self) -> Tensors:
        """Return what every worker must know for the phase of now, e.g. w~ and its gradient."""
        ...

    def answer(self, worker: int) -> Tensors:
        """Return the w of now, for a worker's next task."""
        ...

    def apply(self, worker: int, message: Tensors, staleness: int) -> None:
        """Apply one message, computed at a w that was `staleness` updates old."""
        ...

    def changed(self) -> Tensor | None:
        """Return which coordinates of the answer's first tensor, a vector, the last `apply` may
        have changed: whole numbers, which nobody will write to; None: any. What changes in another
        way than by `apply` is not asked for.
        """
        ...

    def close_phase(self) -> None:
        """End the phase of now: its last message has been applied."""
        ...

    def certify(self, parts: Mapping[int, Certificate], answer: Tensors) -> dict[str, float]:
        """Return the certificate's figures from those of all workers, made at one `answer`."""
        ...

    def judge(self, figures: Mapping[str, float]) -> str | None:
        """Look at a new certificate: None to go on, else why the step was too long. After a reason
        the mechanism calls `rewind`, and lets every worker do the same.
        """
        ...

    def mark(self, worker: int, number: int) -> None:
        """A worker remembers its state of now for certificate `number`: remember what it has
        applied. Marks below the last good certificate are not asked for again.
        """
        ...

    def rewind(self, number: int | None) -> None:
        """Go back to the marks of certificate `number`, the last good one, and halve the step.

        None, and for a worker that has no such mark: to where its process began. The phase may
        change.
        """
        ...

    def kept(self, worker: int, step: int) -> None:
        """A worker keeps its state of now for checkpoint `step`."""
        ...

    def take_back(self, worker: int, step: int | None) -> None:
        """A worker is lost, and the process in its place begins with what it kept for checkpoint
        `step`, None: with nothing. Undo what it has applied since then, so that relations between
        server and workers hold again; its marks are gone.
        """
        ...

    def weights(self, answer: Tensors) -> Mapping[str, Tensor]:
        """Return the model that an answer is of, by name, on the CPU."""
        ...

    def report(self) -> Mapping[str, Any]:
        """Return the figures since the last report, and start new ones."""
        ...

    def save(self) -> Mapping[str, Any]:
        """Return all that the server's half is: tensors nobody will write to, numbers, text."""
        ...

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        ...


class WorkerRule(Protocol):
    """One worker's half of an algorithm, on its samples. Called by one thread."""

    def begin(self, phase: Phase, opening: Tensors) -> None:
        """A phase begins; what was not committed is dropped."""
        ...

    def work(self, task: Task, answer: Tensors, piece: int) -> None:
        """Compute one of the phase's pieces of a message at the w of `answer`, which is written to
        when the next answer comes.
        """
        ...

    def message(self) -> Tensors:
        """Return the message whose pieces are computed; what it has changed can be undone."""
        ...

    def commit(self) -> None:
        """The last message has been applied by the server, once."""
        ...

    def discard(self) -> None:
        """The last message was too stale, or of a phase that is over; it will never be applied."""
        ...

    def certify(self, answer: Tensors) -> Certificate:
        """Return this worker's part of a certificate at the w of `answer`, changing nothing."""
        ...

    def mark(self, number: int, good: int | None) -> None:
        """Remember the state of now for certificate `number`; marks below `good` are not needed."""
        ...

    def rewind(self, number: int | None) -> None:
        """Go back to the mark of certificate `number`; None or no such mark: to where the process
        began, which is what it restored, if anything.
        """
        ...

    def samples(self) -> int:
        """Return how many samples the message of now has looked at, in the pieces so far."""
        ...

    def save(self) -> Mapping[str, Any]:
        """Return all that the worker's half is after its last commit."""
        ...

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned."""
        ...


class Cut(Protocol):
    """Cuts what workers send to a server of several shards, each of which has a range of w."""

    def message(self, tensors: Tensors) -> list[Tensors]:
        """Return the slices of a message, one a shard, as its rule applies them."""
        ...

    def vector(self, vector: Tensor) -> list[Tensor]:
        """Return the slices of a vector of w's size, one a shard."""
        ...
