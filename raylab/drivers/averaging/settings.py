"""The numbers of an averaging run, checked once."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from raylab.algorithms.averaging import AVERAGING_METHODS, AveragingMethod, AveragingNumbers
from raylab.algorithms.averaging.averages import check_compression
from raylab.documents import shown
from raylab.errors import ConfigError
from raylab.planner import plan_from_measured

__all__ = ["AveragingSettings", "MaybeAuto", "Precision", "at_least", "fitting_notes", "workers_of"]

MOST_WORKERS = 10_000
MaybeAuto = int | Literal["auto"] | None
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingSettings:
    """Settings of an averaging run, see `raylab.AveragingTrainer`.

    Args:
        least: workers, the fewest.
        most: workers, the most.

    Raises:
        ConfigError: a value is unknown or out of range, or two do not go together.
    """

    method: str
    least: int
    most: int
    tau: MaybeAuto = None
    delay: MaybeAuto = None
    xi: float | None = None
    average_dtype: Precision = "float32"
    average_top_k: float | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in AVERAGING_METHODS:
            close = difflib.get_close_matches(str(self.method), AVERAGING_METHODS, n=1, cutoff=0.3)
            raise ConfigError(
                f"method must be one of {', '.join(AVERAGING_METHODS)}, but got {self.method!r}"
                + (f": did you mean {close[0]}?" if close else "")
            )
        at_least("seed", self.seed, 0)
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be float32 or bfloat16, but got {self.precision!r}")
        for name in ("clip_norm", "clip_value"):
            limit = getattr(self, name)
            number = isinstance(limit, (int, float)) and limit > 0 and math.isfinite(limit)
            if limit is not None and not number:
                raise ConfigError(f"{name} > 0 must hold, but got {limit!r}")
        check_compression(self.average_dtype, self.average_top_k)
        for name in ("tau", "delay"):
            if getattr(self, name) == "auto" and name not in self.rule.free:
                raise ConfigError(
                    f"{name}=auto is measured before the run, but {self.method} has {name}="
                    f"{getattr(self.rule, name)}: leave it out"
                )
        if not self.automatic:
            self.numbers()

    @property
    def rule(self) -> AveragingMethod:
        """The method."""
        return AVERAGING_METHODS[self.method]

    @property
    def automatic(self) -> bool:
        """Whether tau or the delay is to be measured first."""
        return "auto" in (self.tau, self.delay)

    def numbers(self) -> AveragingNumbers:
        """Return tau, d and xi; none may be "auto".

        Raises:
            ConfigError: see `AveragingMethod.numbers`.
        """
        if self.tau == "auto" or self.delay == "auto":
            raise ConfigError("tau and delay must be numbers here, but they were to be measured")
        return self.rule.numbers(self.tau, self.delay, self.xi)

    def decided(self, step_s: float, average_s: float) -> AveragingSettings:
        """Return the settings with what was to be measured as numbers.

        d = ceil(t_c / t_p) and tau = d + 1, see `raylab.planner.averaging`; what the user has given
        as a number stays.

        Args:
            step_s: t_p, of a local step.
            average_s: t_c, of an average.
        """
        if not self.automatic:
            return self
        period = plan_from_measured(
            average_s,
            step_s,
            tau=None if self.tau == "auto" else self.tau or self.rule.tau,
            delay=self._fixed_delay(),
        )
        return replace(self, tau=period.tau, delay=period.delay)

    def _fixed_delay(self) -> int | None:
        if self.delay == "auto":
            return None
        return self.rule.delay if self.delay is None else self.delay


def fitting_notes(settings: AveragingSettings, batches: int | None, epochs: int) -> list[str]:
    """Return what a user should know of settings that do not fit the batches.

    Args:
        settings: of the run.
        batches: of an epoch; None: they do not say.
        epochs: of the run.
    """
    if batches is None:
        return []
    notes = []
    if settings.least > batches:
        notes.append(
            f"{settings.least} workers are more than the {batches} batches of an epoch: some get "
            "the same ones"
        )
    steps = -(-batches // settings.least) * epochs
    tau = None if settings.automatic else settings.numbers().tau
    if tau is not None and tau > steps:
        notes.append(
            f"tau={tau} is more than the {steps} local steps of a worker: there is no average "
            "before the end"
        )
    return notes


def workers_of(workers: Any) -> tuple[int, int]:
    """Return the fewest and the most workers.

    Raises:
        ConfigError: these are no numbers of workers.
    """
    found = list(workers) if isinstance(workers, (list, tuple)) else [workers]
    few, most = (found[0], found[-1]) if found else (0, 0)
    if any(type(each) is not int for each in found) or len(found) > 2 or not 1 <= few <= most:
        raise ConfigError(
            "workers must be a number >= 1, or the fewest and the most of them, but got "
            f"{workers!r}"
        )
    if most > MOST_WORKERS:
        raise ConfigError(f"workers <= {MOST_WORKERS} must hold, but got {shown(workers)}")
    return few, most


def at_least(name: str, value: object, least: int) -> None:
    """Check a number.

    Raises:
        ConfigError: it is no integer, or less than that.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} >= {least} must hold for an integer, but got {value!r}")
