"""The errors that raylab raises, and the exit code that each one gives a command.

    RaylabError                 exit 1: the run failed
    ├── NonFiniteLossError      exit 1: the loss became NaN or infinite
    └── InputError              exit 2: something that the caller can mend
        ├── ConfigError         a setting: unknown, of the wrong type, out of its range
        ├── ModelError          a model that cannot be cut, or does not fit its input
        ├── DataError           a file, a data set or a batch
        ├── CheckpointError     a checkpoint that is not whole, or a state that cannot be one
        └── ResourceError       the cluster has not what the run asks for

Every error takes one message and nothing else, so that it survives the pickling between an actor
and the driver.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "InputError",
    "ModelError",
    "NonFiniteLossError",
    "RaylabError",
    "ResourceError",
]


class RaylabError(Exception):
    """A run failed; the message names the rule, the value and the way out."""

    exit_code = 1
    tells_its_story = True
    """Passes through a stage as it is: the message says where and why already."""


class NonFiniteLossError(RaylabError):
    """The loss became NaN or infinite."""


class InputError(RaylabError, ValueError):
    """Something that the caller gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A setting is unknown, of the wrong type, or out of its range."""


class ModelError(InputError):
    """A model cannot be cut into stages, or does not fit its input."""


class DataError(InputError):
    """A file is missing or malformed, or a batch has the wrong shape or type."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or of another make, or a state cannot be kept in one."""


class ResourceError(InputError):
    """The cluster does not have the resources that the run asks for."""
