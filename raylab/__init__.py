"""raylab: elastic, distributed orchestration of asynchronous training on Ray.

>>> from raylab import PipelineTrainer
"""

from raylab.drivers import PipelineTrainer, Result
from raylab.errors import (
    ConfigError,
    DataError,
    InputError,
    ModelError,
    NonFiniteLossError,
    RaylabError,
    ResourceError,
)
from raylab.optimizers import Schedule

__all__ = [
    "ConfigError",
    "DataError",
    "InputError",
    "ModelError",
    "NonFiniteLossError",
    "PipelineTrainer",
    "RaylabError",
    "ResourceError",
    "Result",
    "Schedule",
    "__version__",
]

__version__ = "0.1.0"
