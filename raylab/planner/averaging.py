"""How often workers average, and how late the average may be merged: tau, d, and what they cost.

    mini-batch SGD  | step | t_c | step | t_c | step | t_c | step | t_c |     DASGD Eq. (4)
    Local SGD       | step | step | step | t_c | step | step | step | t_c |         Eq. (5)
    DaSGD           | step | step | step | step | step | step | step |              Eq. (6)
                                         └ t_c ┘ merged d = 1 step later

DaSGD hides the average completely while t_c <= d t_p: d = ceil(t_c / t_p) is the smallest delay
that does, by Eq. (3), and tau = d + 1 the smallest number of local steps that allows it, by section
VI-D: fewer local steps between averages are better for the accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from raylab.errors import ConfigError
from raylab.planner.all_reduce import AllReduce, Network, all_reduce_s

__all__ = [
    "AVERAGING_METHODS",
    "AveragingMethod",
    "AveragingPlan",
    "Period",
    "averaging_plan",
    "plan_from_measured",
]

AveragingMethod = Literal["minibatch_sgd", "local_sgd", "dasgd"]
AVERAGING_METHODS: tuple[AveragingMethod, ...] = get_args(AveragingMethod)
_EXACT = 1e-9
"""Relative: a quotient that is a whole number but for its rounding is this number."""


class Period(NamedTuple):
    """Local steps from one average to the next, and steps until an average is merged."""

    tau: int
    delay: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingPlan:
    """A choice of tau and d, and what the three methods take with it.

    Mini-batch SGD averages every step, whatever `tau` is; Local SGD uses `tau` and no delay.

    Args:
        tau: local steps from one average to the next, >= 1.
        delay: d, local steps until an average is merged, 0 <= d < tau.
        step_s: t_p, the time of one local step: forward, backward and update of a local batch.
        all_reduce_s: t_c, the time of one average.
    """

    tau: int
    delay: int
    step_s: float
    all_reduce_s: float

    def __post_init__(self) -> None:
        _require_times(self.all_reduce_s, self.step_s)
        _require_period(self.tau, self.delay)

    @property
    def hidden(self) -> bool:
        """Whether DaSGD never waits: t_c <= d t_p, Eq. (3)."""
        return self.waits_s("dasgd") == 0

    def waits_s(self, method: AveragingMethod) -> float:
        """Return the time that a worker waits for the network, in seconds a step on average.

        Eq. (4): t_c; Eq. (5): t_c / tau; Eq. (6): nothing while t_c <= d t_p. If t_c is more, the
        worker waits for the rest of it once in tau steps, of which the paper does not speak.

        Raises:
            ConfigError: there is no such method.
        """
        if method == "minibatch_sgd":
            return self.all_reduce_s
        if method == "local_sgd":
            return self.all_reduce_s / self.tau
        if method == "dasgd":
            left = self.all_reduce_s - self.delay * self.step_s
            return left / self.tau if left > _EXACT * self.all_reduce_s else 0.0
        raise ConfigError(
            f"a method must be one of {', '.join(AVERAGING_METHODS)}, but got {method!r}"
        )

    def share(self, method: AveragingMethod) -> float:
        """Return the share of communication in the time of a step, from 0 to below 1.

        t_c / (t_p + t_c) for mini-batch SGD and (t_c / tau) / (t_p + t_c / tau) for Local SGD.
        """
        waits = self.waits_s(method)
        return waits / (self.step_s + waits)

    def epoch_s(self, method: AveragingMethod, *, samples: int, global_batch: int) -> float:
        """Return the time of one epoch in seconds, by Eq. (4), (5) or (6).

        The brackets of these equations are one step and its share of the average, B / (p m) (t_f +
        t_b) + t_l being `step_s`. The last, incomplete batch counts by its samples, as there.

        Args:
            method: that trains.
            samples: n_s, of the data set.
            global_batch: B, samples of one step of all workers.

        Raises:
            ConfigError: a number out of its range, or no such method.
        """
        for name, value in (("samples", samples), ("global_batch", global_batch)):
            if value < 1:
                raise ConfigError(f"`{name} >= 1` must hold, but got {value}")
        return (self.step_s + self.waits_s(method)) * samples / global_batch


def averaging_plan(
    parameter_bytes: int,
    step_s: float,
    network: Network,
    *,
    algorithm: AllReduce = "tree",
    tau: int | None = None,
    delay: int | None = None,
) -> AveragingPlan:
    """Choose tau and d for a network that is described by its rates.

    >>> titan_x = Network(workers=256, workers_per_node=8, ethernet_gbit_s=20, pcie_gbyte_s=16)
    >>> plan = averaging_plan(4 * 25_530_472, 0.52605, titan_x, tau=4)
    >>> plan.delay, f"{plan.share('minibatch_sgd'):.1%}", f"{plan.share('local_sgd'):.1%}"
    (1, '45.9%', '17.5%')

    Args:
        parameter_bytes: of the averaged weights, 4 a parameter in float32.
        step_s: t_p, of one local step.
        network: between the workers.
        algorithm: of the average; the paper decides by Tree, which is the slowest.
        tau: fixed; None: d + 1.
        delay: fixed; None: the smallest that hides the average, as far as `tau` allows.

    Raises:
        ConfigError: a number out of its range, or 0 <= delay < tau does not hold.
    """
    average_s = all_reduce_s(parameter_bytes, network, algorithm)
    period = plan_from_measured(average_s, step_s, tau=tau, delay=delay)
    return AveragingPlan(tau=period.tau, delay=period.delay, step_s=step_s, all_reduce_s=average_s)


def plan_from_measured(
    all_reduce_s: float, step_s: float, *, tau: int | None = None, delay: int | None = None
) -> Period:
    """Choose tau and d from two times, which may have been measured.

    d = ceil(t_c / t_p), tau = d + 1: DASGD Eq. (3) and section VI-D.

    >>> plan_from_measured(0.447, 0.526)
    Period(tau=2, delay=1)
    >>> plan_from_measured(5.6, 1.8)
    Period(tau=5, delay=4)
    >>> tau, delay = plan_from_measured(5.6, 1.8, tau=4)  # as late as tau allows
    >>> tau, delay
    (4, 3)

    Args:
        all_reduce_s: t_c, of one average over all workers.
        step_s: t_p, of one local step.
        tau: fixed; None: d + 1.
        delay: fixed; None: the smallest that hides the average, as far as `tau` allows.

    Raises:
        ConfigError: a time out of its range, or 0 <= delay < tau does not hold.
    """
    _require_times(all_reduce_s, step_s)
    if delay is None:
        steps = all_reduce_s / step_s
        delay = math.ceil(steps * (1 - _EXACT))
        if tau is not None:
            delay = min(delay, max(tau - 1, 0))
    if tau is None:
        tau = delay + 1
    _require_period(tau, delay)
    return Period(tau, delay)


def _require_times(all_reduce_s: float, step_s: float) -> None:
    if not (math.isfinite(step_s) and step_s > 0):
        raise ConfigError(f"the time of a step must be a number > 0, but got {step_s} s")
    if not (math.isfinite(all_reduce_s) and all_reduce_s >= 0):
        raise ConfigError(f"the time of an average must be a number >= 0, but got {all_reduce_s} s")


def _require_period(tau: int, delay: int) -> None:
    if tau < 1 or not 0 <= delay < tau:
        raise ConfigError(
            f"`tau >= 1` and `0 <= delay < tau` must hold, but got (tau={tau}, delay={delay})"
        )
