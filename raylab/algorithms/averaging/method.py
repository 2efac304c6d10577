"""What distinguishes the averaging methods: a few numbers of one rule.

W workers hold a replica each. After step k of every worker an average of the replicas is started if
(k + 1) mod tau = 0, and nobody waits for it; d steps later it is merged:

    x <- xi x + (1 - xi) mean_j(x^j as they were d steps ago)      if (k + 1 - d) mod tau = 0

(DASGD eq. 2 and 7). Mini-batch SGD averages the gradients of every step instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raylab.errors import ConfigError

__all__ = ["AveragingMethod", "AveragingNumbers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingMethod:
    """One method, as settings of the averaging rule.

    Args:
        name: what users call it.
        title: its name in the literature.
        source: paper and equation.
        averages: what is averaged.
        tau: local steps between two averages, unless the user says otherwise.
        delay: d, local steps by which an average is merged late.
        xi: weight of the local weights in a merge.
        free: of these three, those that the user may choose.
    """

    name: str
    title: str
    source: str
    averages: Literal["gradients", "weights"]
    tau: int
    delay: int
    xi: float
    free: tuple[str, ...]

    def numbers(
        self, tau: int | None = None, delay: int | None = None, xi: float | None = None
    ) -> AveragingNumbers:
        """Return tau, d and xi of a run; None: the method's own.

        Raises:
            ConfigError: one is not the method's to choose, or out of range.
        """
        for name, value in (("tau", tau), ("delay", delay), ("xi", xi)):
            if value is not None and name not in self.free and value != getattr(self, name):
                raise ConfigError(
                    f"{self.name} has {name}={getattr(self, name)}, but got {name}={value}: leave "
                    "it out, or choose dasgd, which takes tau, delay and xi"
                )
        return AveragingNumbers(
            averages=self.averages,
            tau=self.tau if tau is None else tau,
            delay=self.delay if delay is None else delay,
            xi=self.xi if xi is None else xi,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingNumbers:
    """The rule of one run.

    Args:
        averages: what is averaged: "gradients" of every step, or "weights".
        tau: local steps between two averages, >= 1.
        delay: d, local steps by which an average is merged late, 0 <= d < tau.
        xi: weight of the local weights in a merge, 0 <= xi < 1.

    Raises:
        ConfigError: one is out of range.

    >>> rule = AveragingNumbers(averages="weights", tau=4, delay=1, xi=0.25)
    >>> [k for k in range(12) if rule.starts(k)], [k for k in range(12) if rule.merges(k)]
    ([3, 7, 11], [4, 8])
    """

    averages: Literal["gradients", "weights"]
    tau: int
    delay: int
    xi: float

    def __post_init__(self) -> None:
        for name, value, least in (("tau", self.tau, 1), ("delay", self.delay, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} >= {least} must hold for an integer, but got {value!r}")
        if not self.delay < self.tau:
            raise ConfigError(
                "0 <= delay < tau must hold, since an average is merged before the next one "
                f"starts, but got delay={self.delay} with tau={self.tau}: choose tau >= "
                f"{self.delay + 1}"
            )
        if isinstance(self.xi, bool) or not 0 <= self.xi < 1:
            raise ConfigError(
                f"0 <= xi < 1 must hold, but got {self.xi!r}: with xi = 1 no replica would ever "
                "hear of another"
            )

    def starts(self, step: int) -> bool:
        """Tell whether an average starts after step k: (k + 1) mod tau = 0."""
        return (step + 1) % self.tau == 0

    def merges(self, step: int) -> bool:
        """Tell whether one is merged after step k: (k + 1 - d) mod tau = 0.

        Differs from the paper: at k + 1 = d there is none yet, as the workers begin alike.
        """
        return step >= self.delay and (step + 1 - self.delay) % self.tau == 0
