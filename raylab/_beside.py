"""The package `actors`, which must be the one beside raylab, whatever else has its name.

It is imported by its name, here and in every process of Ray. A module of a user's own with this
name, before it on the path, would be taken in its place, and end in an error that names neither.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

from raylab.errors import ConfigError

__all__ = ["ShadowedError", "check_beside", "check_workers_path", "run_as_command"]

_NAME = "actors"


class ShadowedError(ConfigError, ImportError):
    """Another module stands in the place of one of ours."""


def check_beside() -> None:
    """Check that `actors` is the package beside raylab.

    Raises:
        ShadowedError: another module of this name is found first, or has been imported.
    """
    loaded = sys.modules.get(_NAME)
    if loaded is not None:
        found = getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec(_NAME)
        found = None if spec is None else spec.origin
    _refuse_other(found)


def check_workers_path() -> None:
    """Check the same for Ray's workers, on whose path the folder of now comes first.

    Raises:
        ShadowedError: another module of this name is in it.
    """
    spec = importlib.machinery.PathFinder.find_spec(_NAME, [str(Path.cwd())])
    if spec is not None and spec.origin is not None:
        _refuse_other(spec.origin)


def _refuse_other(found: str | None) -> None:
    ours = Path(__file__).resolve().parents[1] / _NAME / "__init__.py"
    if found is not None and os.path.realpath(found) == str(ours):
        return
    where = "there is none" if found is None else f"Python finds {found} first"
    raise ShadowedError(
        f"`{_NAME}` must be the package beside raylab, in {ours.parent}, but {where}: rename that "
        "file or folder, or start from another folder"
    )


def run_as_command() -> bool:
    """Tell whether this process is `raylab` or `python -m raylab`, which say errors in a line."""
    return bool(sys.argv) and Path(sys.argv[0]).name in ("-m", "raylab")
