"""The numbers of a pipeline run, checked once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from actors.wires.carrier import CarrierKind
from actors.wires.link import CarrierChoice, WireKind
from raylab.algorithms.pipeline import PIPELINE_METHODS, PipelineMethod
from raylab.algorithms.stage.weight_versions import WeightVersion
from raylab.errors import ConfigError

__all__ = ["MOST_STAGES", "Balance", "Delay", "PipelineSettings", "Precision", "at_least"]

MOST_STAGES = 16
Delay = int | Sequence[int] | Literal["auto"] | None
Precision = Literal["float32", "bfloat16"]
_CARRIERS = ("auto", *get_args(CarrierKind))
Balance = Literal["counted", "measured", "memory"]
_DELAYED = ", ".join(name for name, method in PIPELINE_METHODS.items() if method.delayed)
_STALE = ", ".join(name for name, method in PIPELINE_METHODS.items() if method.stale)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """Settings of a pipeline, see `raylab.PipelineTrainer`.

    Raises:
        ConfigError: a value is unknown or out of range, or two do not go together.
    """

    method: str
    stages: int | tuple[int, ...]
    accumulate: int = 1
    delay: int | tuple[int, ...] | Literal["auto"] | None = None
    weight_version: WeightVersion = "forward"
    recompute: bool = False
    barrier: bool = False
    micro_batches: int = 4
    clip_norm: float | None = None
    clip_value: float | None = None
    precision: Precision = "float32"
    gradient_shrink: float = 1.0
    sigma_every: int = 0
    seed: int = 0
    wire: WireKind = "zmq"
    carrier: CarrierChoice = "auto"
    balance: Balance = "counted"
    timeline: int = 0

    def __post_init__(self) -> None:
        if self.method not in PIPELINE_METHODS:
            close = difflib.get_close_matches(str(self.method), PIPELINE_METHODS, n=1, cutoff=0.3)
            raise ConfigError(
                f"method must be one of {', '.join(PIPELINE_METHODS)}, but got {self.method!r}"
                + (f": did you mean {close[0]}?" if close else "")
            )
        cuts = self.stages if isinstance(self.stages, tuple) else (self.stages,)
        if not all(type(each) is int for each in cuts):
            raise ConfigError(
                f"stages must be a number or a list of cut points, but got {self.stages!r}"
            )
        at_least("accumulate (M)", self.accumulate, 1)
        at_least("micro_batches", self.micro_batches, 1)
        at_least("seed", self.seed, 0)
        at_least("timeline", self.timeline, 0)
        if not 1 <= self.count <= MOST_STAGES:
            raise ConfigError(
                f"1 <= stages <= {MOST_STAGES} must hold, but got {self.count} stages"
            )
        for name, choices in (
            ("weight_version", get_args(WeightVersion)),
            ("precision", get_args(Precision)),
            ("wire", get_args(WireKind)),
            ("carrier", _CARRIERS),
            ("balance", get_args(Balance)),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} must be {' or '.join(choices)}, but got {getattr(self, name)!r}"
                )
        for name in ("clip_norm", "clip_value"):
            limit = getattr(self, name)
            number = isinstance(limit, (int, float)) and limit > 0 and math.isfinite(limit)
            if limit is not None and not number:
                raise ConfigError(f"{name} > 0 must hold, but got {limit!r}")
        if self.wire == "ray" and self.carrier in ("distributed", "ipc"):
            raise ConfigError(
                f"carrier={self.carrier} goes beside wire=zmq, which tells of a link that is cut, "
                "but got wire=ray: choose zmq, or carrier=inline"
            )
        if self.balance != "counted" and isinstance(self.stages, tuple):
            raise ConfigError(
                f"balance says how a number of stages is cut, but got balance={self.balance} with "
                f"the cut points {list(self.stages)}: leave one of them out"
            )
        self._check_recompute()
        self._check_shrink()
        self._check_sigma()
        self._check_delay()

    def _check_recompute(self) -> None:
        if not self.recompute:
            return
        if not self.rule.stale or self.rule.replay:
            raise ConfigError(
                "recompute=true keeps inputs instead of graphs of late gradients, so it belongs to "
                f"ddg and adl, but got method={self.method}"
            )
        if self.weight_version != "forward":
            raise ConfigError(
                "recompute=true runs a forward again with the weights that it had, so it needs "
                f"weight_version=forward, but got {self.weight_version}: with current weights "
                "that is method=fr or dsp"
            )

    def _check_shrink(self) -> None:
        beta = self.gradient_shrink
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 < beta <= 1:
            raise ConfigError(f"0 < gradient_shrink <= 1 must hold, but got {beta!r}")
        if beta != 1 and not self.rule.stale:
            raise ConfigError(
                f"gradient_shrink is for the late gradients of {_STALE}, but got "
                f"gradient_shrink={beta} with method={self.method}"
            )

    def _check_sigma(self) -> None:
        at_least("sigma_every", self.sigma_every, 0)
        if self.sigma_every and (self.rule.flush or self.rule.feedback != "error"):
            raise ConfigError(
                f"sigma_every measures the direction of bp, {_STALE}, but got "
                f"sigma_every={self.sigma_every} with method={self.method}"
            )
        if self.sigma_every and self.barrier:
            raise ConfigError(
                "sigma_every sends batches through all stages between two ticks, but got "
                "barrier=True: leave one of them out"
            )

    def _check_delay(self) -> None:
        method, delay = self.rule, self.delay
        if delay is not None and not method.delayed:
            raise ConfigError(
                f"delay belongs to the delayed-gradient methods ({_DELAYED}), but got "
                f"delay={delay} with method={method.name}, whose gradients are never late"
            )
        if delay == "auto" and not method.stale:
            raise ConfigError(
                f"delay='auto' measures when late gradients come, but got method={method.name}, "
                "which does not wait for them: give a number, or leave it out"
            )
        if isinstance(delay, tuple):
            if len(delay) != self.count - 1:
                raise ConfigError(
                    f"delay as a list must have one number per link, {self.count - 1} for "
                    f"{self.count} stages, but got {list(delay)}"
                )
            for each in delay:
                at_least("each delay", each, 0)
        elif isinstance(delay, int):
            at_least("delay", delay, 0)
        elif delay not in (None, "auto"):
            raise ConfigError(f"delay must be a number, a list or 'auto', but got {delay!r}")
        if self.barrier and method.flush:
            raise ConfigError(
                f"barrier=True is the lock step of bp, {_STALE}, but got method="
                f"{method.name}, which is synchronous anyway"
            )
        if self.barrier and method.feedback != "error":
            raise ConfigError(
                f"barrier=True is the lock step of bp, {_STALE}, but got method={method.name}, "
                "whose stages wait for no gradient"
            )

    @property
    def rule(self) -> PipelineMethod:
        """The method."""
        return PIPELINE_METHODS[self.method]

    @property
    def count(self) -> int:
        """K, the number of stages."""
        return self.stages if isinstance(self.stages, int) else len(self.stages) + 1

    @property
    def parts(self) -> int:
        """Micro-batches per batch."""
        return self.micro_batches if self.rule.micro_batches else 1

    def link_delays(self) -> list[int | None]:
        """Return the delay of every link; for 'auto', 2: what hides any message that can be."""
        links = self.count - 1
        if isinstance(self.delay, tuple):
            return list(self.delay)
        if self.delay is None:
            return [self.rule.link_delay] * links
        return [2 if self.delay == "auto" else self.delay] * links


def at_least(name: str, value: object, least: int) -> None:
    """Check a number.

    Raises:
        ConfigError: it is no integer, or less than that.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} >= {least} must hold for an integer, but got {value!r}")
