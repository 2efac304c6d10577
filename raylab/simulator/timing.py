"""How long things take under virtual time, and what happens on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raylab.errors import ConfigError

__all__ = ["Event", "Timing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations, in seconds.

    Args:
        sample_s: computation of one sample's gradient; None: what it takes here, measured.
        message_s: computation of a message beside that of its samples, where that is modelled.
        latency_s: of a message, each way.
        bytes_per_s: of the server's link, which carries one message after the other each way.
        apply_s: to apply one message at the server, which applies one after the other.
        detect_s: until the loss of a worker is known.
        restart_s: from then on, until another process is in its place.

    Raises:
        ConfigError: a duration is negative, or the bandwidth not above 0.
    """

    sample_s: float | None = 1e-5
    message_s: float = 0.0
    latency_s: float = 1e-4
    bytes_per_s: float = 125e6
    apply_s: float = 0.0
    detect_s: float = 0.05
    restart_s: float = 0.2

    def __post_init__(self) -> None:
        durations = ("latency_s", "apply_s", "detect_s", "restart_s")
        for name in ("sample_s", "message_s", *durations):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} must not be negative, but got {value}")
        if self.bytes_per_s <= 0:
            raise ConfigError(f"bytes_per_s must be above 0, but got {self.bytes_per_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens at a virtual time.

    Args:
        time_s: when.
        kind: "death" of a worker, whatever it does; "checkpoint": a new one is begun; "repeat":
            the next push of a worker reaches the server twice.
        worker: whom it happens to.
    """

    time_s: float
    kind: Literal["death", "checkpoint", "repeat"]
    worker: int = 0
