"""What server and workers tell each other.

    worker ── Push, Proof ──▶ server        server ── Reply, News ──▶ worker

A worker has one task at a time; its push is answered by one reply, which says first what became of
the push, and last what to do now. Dual methods change a worker and the server together, so a push
is applied once or never, and its worker is told which.

Nobody writes to them; they are not frozen because that takes three times as long to make, some of
what a small message costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actors.server.protocols import Certificate, Task
from actors.units import Tensors

__all__ = ["News", "Order", "Proof", "Push", "Reply", "Verdict"]

Verdict = Literal["none", "commit", "discard"]
"""What became of the last push: there was none, it was applied, or it never will be."""


@dataclass(slots=True, kw_only=True)
class Push:
    """One message of a worker.

    Args:
        era: of its task; the era changes when the server goes back to an earlier state.
        phase: number of its task's phase.
        number: of the message.
        tensors: what the server's rule applies.
        samples: that it has looked at.
        waited_s: that its worker has waited for replies in all.
    """

    era: int
    phase: int
    number: int
    tensors: Tensors
    samples: int
    waited_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Proof:
    """A worker's part of a certificate.

    Args:
        number: of the certificate.
        certificate: the part.
    """

    number: int
    certificate: Certificate


@dataclass(slots=True, kw_only=True)
class Reply:
    """What a worker is to do, in this order.

    Args:
        verdict: commit or discard the last push.
        rewind: whether to go back to the mark of `good`, or to the beginning if that is None.
        good: the last certificate that was good.
        save: step of a checkpoint for which the state is kept now; None: none.
        certify: number of a certificate, the answer to make it at, and the updates behind that;
            None: none.
        era: to be named in the next push.
        opening: of the task's phase, where the worker does not have it yet.
        task: what to compute; None: nothing until the next reply, which comes unasked.
        answer: to compute it at.
        over: whether the run is over, and no reply follows.
        at: updates behind the answer, as `ServerState.trail` counts them.
    """

    verdict: Verdict
    rewind: bool
    good: int | None
    save: int | None
    certify: tuple[int, Tensors, int] | None
    era: int
    opening: Tensors | None
    task: Task | None
    answer: Tensors
    over: bool = False
    at: int = 0


@dataclass(slots=True, kw_only=True)
class News:
    """The newest w, for a worker that computes; the last one counts, one that is lost does not.

    Args:
        era: that it belongs to.
        version: updates behind it.
        answer: the w.
        at: updates behind it, as `ServerState.trail` counts them.
    """

    era: int
    version: int
    answer: Tensors
    at: int = 0


@dataclass(slots=True, kw_only=True)
class Order:
    """What the server's loop wants sent."""

    worker: int
    message: Reply | News
