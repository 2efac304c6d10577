"""What was measured, beside what DASGD's equations (4) to (6) make of t_p and t_c.

A repeat measures a step without communication (t_p), an average with nothing beside it (t_c) and
all methods, one after another. Its times are compared with each other only; what is told of several
repeats is the median.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.shaped.flat_model import FORWARD_SHARE
from raylab.planner.averaging import AveragingMethod, AveragingPlan, plan_from_measured

__all__ = ["METHODS", "Method", "Repeat", "Row", "chosen_delay", "header", "rows", "told"]

LEAST_SHARE = 0.97
"""Of the throughput without communication, where DaSGD's average is hidden."""
WITHIN = 0.1
"""Of the predicted time, relative, where the average is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One of the compared.

    Args:
        title: in the table.
        law: whose equation holds for it.
        crew: who runs it: "own" workers, "torchft"'s, or "ray" for the trainer on Ray nodes.
        way: by which a worker does it.
        buckets: in which gradients are sent, each as soon as its layer's backward is done.
    """

    title: str
    law: AveragingMethod
    crew: str
    way: str
    buckets: int = 1

    def predicted_s(self, plan: AveragingPlan) -> float:
        """Return the time of a step by the method's equation.

        Gradients in n > 1 buckets are not in the paper: each bucket takes t_c / n and is sent when
        the backward t_b has come to its layer, so that t_b + t_c of (4) becomes
        max(t_b / n + t_c, t_b + t_c / n).
        """
        if self.buckets == 1:
            return plan.step_s + plan.waits_s(self.law)
        backward_s, average_s = (1 - FORWARD_SHARE) * plan.step_s, plan.all_reduce_s
        ends_s = max(backward_s / self.buckets + average_s, backward_s + average_s / self.buckets)
        return FORWARD_SHARE * plan.step_s + ends_s


METHODS = (
    Method(title="raylab minibatch_sgd", law="minibatch_sgd", crew="own", way="raylab"),
    Method(title="torch DDP", law="minibatch_sgd", crew="own", way="ddp"),
    Method(title="torch DDP, 8 buckets", law="minibatch_sgd", crew="own", way="ddp", buckets=8),
    Method(title="raylab local_sgd", law="local_sgd", crew="own", way="raylab"),
    Method(title="torch PostLocalSGD", law="local_sgd", crew="own", way="post_local_sgd"),
    Method(title="torchft LocalSGD", law="local_sgd", crew="torchft", way="torchft_local_sgd"),
    Method(title="raylab dasgd", law="dasgd", crew="own", way="raylab"),
    Method(title="torchft DiLoCo, delayed", law="dasgd", crew="torchft", way="torchft_diloco"),
    Method(title="AveragingTrainer minibatch_sgd", law="minibatch_sgd", crew="ray", way="trainer"),
    Method(title="AveragingTrainer local_sgd", law="local_sgd", crew="ray", way="trainer"),
    Method(title="AveragingTrainer dasgd", law="dasgd", crew="ray", way="trainer"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The times of one repeat, in seconds, means over the workers.

    Args:
        compute_s: t_p, of a step without communication.
        average_s: t_c.
        steps_s: of a step, by the method's title.
        blocked_s: that a method says it waited in a step, by title, where it does say.
    """

    compute_s: float
    average_s: float
    steps_s: Mapping[str, float]
    blocked_s: Mapping[str, float]

    def plan(self, tau: int, delay: int) -> AveragingPlan:
        """Return what the equations take."""
        return AveragingPlan(
            tau=tau, delay=delay, step_s=self.compute_s, all_reduce_s=self.average_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method's medians over the repeats.

    Args:
        title: of the method.
        law: of the method.
        overlapped: its averages begin during the backward.
        predicted_s: time of a step by the equation.
        measured_s: time of a step.
        off: measured over predicted time.
        off_range: of it, least and most.
        predicted_share: of the throughput without communication, by the equation.
        share: of the throughput without communication.
        share_range: of it, least and most.
        blocked_s: that it says it waited in a step.
        target: what it is held to, in words; "": nothing.
        holds: whether it does.
    """

    title: str
    law: AveragingMethod
    overlapped: bool
    predicted_s: float
    measured_s: float
    off: float
    off_range: tuple[float, float]
    predicted_share: float
    share: float
    share_range: tuple[float, float]
    blocked_s: float | None
    target: str
    holds: bool

    def json(self) -> dict[str, Any]:
        """Return it for a file."""
        return asdict(self)


def chosen_delay(compute_s: float, average_s: float, tau: int) -> int:
    """Return d as the planner chooses it from measured times, at most tau - 1.

    >>> chosen_delay(0.1, 0.13, tau=4)
    2
    """
    return plan_from_measured(average_s, compute_s, tau=tau).delay


def rows(
    repeats: Sequence[Repeat], methods: Sequence[Method], *, tau: int, delay: int
) -> list[Row]:
    """Return a row for each method."""
    return [_row(repeats, method, tau, delay) for method in methods]


def _row(repeats: Sequence[Repeat], method: Method, tau: int, delay: int) -> Row:
    plans = [repeat.plan(tau, delay) for repeat in repeats]
    measured = [repeat.steps_s[method.title] for repeat in repeats]
    predicted = [method.predicted_s(plan) for plan in plans]
    off = [there / said for there, said in zip(measured, predicted, strict=True)]
    shares = [repeat.compute_s / there for repeat, there in zip(repeats, measured, strict=True)]
    blocked = [r.blocked_s[method.title] for r in repeats if method.title in r.blocked_s]
    share, typical = statistics.median(shares), statistics.median(off)
    hidden = all(plan.hidden for plan in plans)
    target, holds = "", True
    if method.law == "dasgd" and hidden and method.crew != "torchft":
        target, holds = f"share >= {LEAST_SHARE}", share >= LEAST_SHARE
    elif method.law != "dasgd" and method.buckets == 1:
        target, holds = f"within {WITHIN:.0%}", abs(typical - 1) <= WITHIN
    return Row(
        title=method.title,
        law=method.law,
        overlapped=method.buckets > 1,
        predicted_s=statistics.median(predicted),
        measured_s=statistics.median(measured),
        off=typical,
        off_range=(min(off), max(off)),
        predicted_share=statistics.median(
            plan.step_s / there for plan, there in zip(plans, predicted, strict=True)
        ),
        share=share,
        share_range=(min(shares), max(shares)),
        blocked_s=statistics.median(blocked) if blocked else None,
        target=target,
        holds=holds,
    )


def header() -> str:
    """Return the first two lines of a table."""
    names = (
        "method",
        "equation",
        "ms a step, predicted",
        "measured",
        "measured / predicted",
        "share of no communication, predicted",
        "measured",
        "blocked ms a step",
        "target",
    )
    return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}"


def told(row: Row) -> str:
    """Return a line of a table."""
    equation = {"minibatch_sgd": "(4)", "local_sgd": "(5)", "dasgd": "(6)"}[row.law]
    cells = (
        row.title,
        f"{equation}, overlapped" if row.overlapped else equation,
        f"{1e3 * row.predicted_s:.1f}",
        f"{1e3 * row.measured_s:.1f}",
        f"{row.off:.3f} ({row.off_range[0]:.3f}–{row.off_range[1]:.3f})",
        f"{row.predicted_share:.3f}",
        f"{row.share:.3f} ({row.share_range[0]:.3f}–{row.share_range[1]:.3f})",
        "" if row.blocked_s is None else f"{1e3 * row.blocked_s:.1f}",
        f"{row.target}: {'holds' if row.holds else 'MISSED'}" if row.target else "",
    )
    return f"| {' | '.join(cells)} |"
