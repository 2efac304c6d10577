"""The configuration of an averaging run with every default as a number. No Ray in here."""

from __future__ import annotations

from typing import Any, TypeVar

from raylab.algorithms.averaging import AVERAGING_METHODS
from raylab.config import AveragingConfig, AveragingSimulationConfig
from raylab.drivers.averaging.settings import AveragingSettings, workers_of
from raylab.drivers.resolve import resolve

__all__ = ["resolve_averaging", "settings_of", "with_method"]

C = TypeVar("C", AveragingConfig, AveragingSimulationConfig)


def resolve_averaging(config: C) -> C:
    """Return `config` with defaults as numbers, but for those that are to be measured.

    Raises:
        ConfigError: two keys do not go together, or the recipe is unknown.
    """
    settings = settings_of(config)
    config = resolve(config)
    if settings.automatic:
        return config
    numbers = settings.numbers()
    found = {name: getattr(numbers, name) for name in ("tau", "delay", "xi")}
    return config.model_copy(update=found)


def settings_of(config: AveragingConfig) -> AveragingSettings:
    """Return the numbers of a run.

    Raises:
        ConfigError: one is out of range, or two do not go together.
    """
    least, most = workers_of(config.workers)
    return AveragingSettings(
        method=config.method,
        least=least,
        most=most,
        tau=config.tau,
        delay=config.delay,
        xi=config.xi,
        average_dtype=config.average_dtype,
        average_top_k=config.average_top_k,
        clip_norm=config.clip_norm,
        clip_value=config.clip_value,
        precision=config.precision,
        seed=config.seed,
    )


def with_method(method: str) -> dict[str, Any]:
    """Return what changes for another method: tau, delay and xi stay where they are its own."""
    free = AVERAGING_METHODS[method].free
    return {
        "method": method,
        **{name: None for name in ("tau", "delay", "xi") if name not in free},
    }
