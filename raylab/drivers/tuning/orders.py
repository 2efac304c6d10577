"""From a point of the space to a trial's order: the run's keys and what it asks of the cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylab.config import PipelineConfig, RunConfiguration, run_config
from raylab.config.tuning import TuningConfig
from raylab.drivers.commands import resolved
from raylab.drivers.demand import bundles
from raylab.drivers.tuning.space import run_keys
from raylab.drivers.tuning.study import trial_folder
from raylab.drivers.tuning.trial import TrialOrder

__all__ = ["Orders", "absolute"]

_FILES = ("libsvm:", "npz:")
_RESOURCES = ("stages", "workers", "servers", "method")
"""Keys that say how many actors a run has; with those of CPUs and GPUs, what it asks for."""


class Orders:
    """Makes the orders of a search's trials.

    Args:
        config: of the search.
        folder: of the tuning.
        cpus: of the machine, where it is the search's own: trials get shares of them that fit;
            None: a cluster.
        patient: trials wait at their reports for word of whether to go on.
    """

    def __init__(
        self, config: TuningConfig, folder: Path, cpus: float | None, *, patient: bool
    ) -> None:
        self._config = config
        self._folder = folder
        self._cpus = cpus
        self._patient = patient

    def __call__(self, number: int, labels: Mapping[str, Any]) -> TrialOrder:
        """Return the order of a trial.

        Raises:
            InputError: the point cannot be run.
        """
        keys = {
            **run_keys(labels, self._config),
            "storage": str((self._folder / trial_folder(number)).parent),
            "name": str(number),
        }
        config = resolved(run_config(keys))
        share = self._share(config)
        if share is not None:
            keys[_cpus_key(config)] = share
            config = resolved(run_config(keys))
        return TrialOrder(
            number=number,
            params=dict(labels),
            train=keys,
            bundles=bundles(config),
            objectives=[each.plain() for each in self._config.objectives],
            family=self._config.family.name,
            asked_at=time.time(),
            patient=self._patient,
        )

    def at_once(self) -> int | None:
        """Return how many trials to run at a time; None: as the cluster has room.

        On the search's own machine, which does not grow, it is known how many there is room for: a
        point is chosen when there is, and not before, when less was known.
        """
        if self._config.concurrent is not None or self._cpus is None:
            return self._config.concurrent
        if any(_asks(domain.key) for domain in self._config.space):
            return None
        needs = sum(each.get("CPU", 0.0) for each in self(0, {})["bundles"])
        return max(1, math.floor(self._cpus / needs + 1e-6))

    def _share(self, config: RunConfiguration) -> float | None:
        """Return the CPUs of each actor of a machine of its own that has too few; None: enough."""
        if self._cpus is None or getattr(config, _cpus_key(config)) is not None:
            return None
        cpus = self._cpus / (self._config.concurrent or 1)
        needs = bundles(config)
        if sum(each.get("CPU", 0.0) for each in needs) <= cpus:
            return None
        return math.floor(100 * cpus / len(needs)) / 100


def absolute(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a run with the path of its data absolute: trials run elsewhere.

    >>> absolute({"data": "npz:/data/images.npz"})
    {'data': 'npz:/data/images.npz'}
    """
    found = dict(train)
    data = str(found.get("data") or "")
    for prefix in _FILES:
        if data.startswith(prefix):
            found["data"] = f"{prefix}{Path(data.removeprefix(prefix)).expanduser().absolute()}"
    if found.get("data_root"):
        found["data_root"] = str(Path(found["data_root"]).expanduser().absolute())
    return found


def _cpus_key(config: RunConfiguration) -> str:
    return "cpus_per_stage" if isinstance(config, PipelineConfig) else "cpus_per_worker"


def _asks(key: str) -> bool:
    return key in _RESOURCES or key.startswith(("cpus_per_", "gpus_per_"))
