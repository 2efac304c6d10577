"""The experiments that ship with the package: `raylab/experiments/NAME.yaml`."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING, Any

from raylab.config.parse import load_yaml

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["experiment_names", "experiment_summary", "read_experiment"]


def experiment_names() -> tuple[str, ...]:
    """Return the names of all experiments, in order."""
    names = [file.name for file in _folder().iterdir()]
    return tuple(sorted(name[: -len(".yaml")] for name in names if name.endswith(".yaml")))


def experiment_summary(name: str) -> str:
    """Return the first line of an experiment, a comment that says what it is."""
    return _text(name).partition("\n")[0].lstrip("# ")


def read_experiment(name: str) -> dict[str, Any]:
    """Return the keys that an experiment sets."""
    return load_yaml(_text(name), f"experiment {name}")


def _text(name: str) -> str:
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def _folder() -> Traversable:
    return importlib.resources.files("raylab") / "experiments"
