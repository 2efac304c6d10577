"""raylab: elastic, distributed orchestration of asynchronous training on Ray.

>>> from raylab import PipelineTrainer

The trainers are imported when they are first used: stage actors import this package too, and
should not pay for the drivers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raylab._beside import check_beside, run_as_command
from raylab.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InputError,
    ModelError,
    NonFiniteLossError,
    RaylabError,
    ResourceError,
)

if TYPE_CHECKING:
    from actors.groups.warm import WarmActors
    from raylab.drivers.averaging.trainer import AveragingTrainer
    from raylab.drivers.pipeline.trainer import PipelineTrainer
    from raylab.drivers.result import Result
    from raylab.drivers.server.trainer import ParameterServerTrainer
    from raylab.drivers.tuning.tune import tune
    from raylab.optimizers import Schedule

__all__ = [
    "AveragingTrainer",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "InputError",
    "ModelError",
    "NonFiniteLossError",
    "ParameterServerTrainer",
    "PipelineTrainer",
    "RaylabError",
    "ResourceError",
    "Result",
    "Schedule",
    "WarmActors",
    "__version__",
    "tune",
]

__version__ = "0.1.0"

if not run_as_command():  # the command says it in a line
    check_beside()

_LATER = {
    "AveragingTrainer": "raylab.drivers.averaging.trainer",
    "ParameterServerTrainer": "raylab.drivers.server.trainer",
    "PipelineTrainer": "raylab.drivers.pipeline.trainer",
    "Result": "raylab.drivers.result",
    "Schedule": "raylab.optimizers",
    "WarmActors": "actors.groups.warm",
    "tune": "raylab.drivers.tuning.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
