"""A space as Optuna asks for it, key by key, and the run that a point of it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from raylab.config.domain import Domain
from raylab.config.parse import lay
from raylab.config.tuning import TuningConfig

__all__ = ["Suggests", "point", "run_keys", "suggest"]


class Suggests(Protocol):
    """What Optuna's trials have."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return a number."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Return a whole number."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""


def suggest(trial: Suggests, config: TuningConfig) -> dict[str, Any]:
    """Choose every key whose conditions hold, each behind those that it depends on.

    Args:
        trial: that chooses.
        config: of the search.

    Returns:
        The choices, as a study keeps them.
    """
    chosen: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for domain in config.space:
        known = {**config.train, **chosen}
        if all(known.get(name) in values for name, values in domain.when.items()):
            labels[domain.key] = _suggest(trial, domain, known)
            chosen[domain.key] = domain.value(labels[domain.key])
    return labels


def _suggest(trial: Suggests, domain: Domain, known: Mapping[str, Any]) -> Any:
    if domain.kind == "choice":
        return trial.suggest_categorical(domain.key, domain.labels)
    if domain.kind == "uniform":
        low, high = domain.ends
        return trial.suggest_float(domain.key, low, high, step=domain.step, log=domain.log)
    low, high = domain.ends
    if domain.below is not None:
        high = min(high, int(known[domain.below]) - 1)
    return trial.suggest_int(domain.key, low, high, step=int(domain.step or 1), log=domain.log)


def point(labels: Mapping[str, Any], config: TuningConfig) -> dict[str, Any]:
    """Return the values of keys that a study keeps by their labels."""
    domains = {domain.key: domain for domain in config.space}
    return {key: domains[key].value(label) for key, label in labels.items() if key in domains}


def run_keys(labels: Mapping[str, Any], config: TuningConfig) -> dict[str, Any]:
    """Return the keys of the run that a point is, as a file of `raylab train` has them."""
    values = copy.deepcopy(dict(config.train))
    for key, value in point(labels, config).items():
        lay(values, key, value)
    return values
