"""The searches that ship with the package: `tune_configs/NAME.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylab.config.parse import load_yaml

__all__ = ["read_search", "search_names", "search_summary"]


def search_names() -> tuple[str, ...]:
    """Return the names of all searches, in order."""
    names = [file.name for file in _folder().iterdir()]
    return tuple(sorted(name[: -len(".yaml")] for name in names if name.endswith(".yaml")))


def search_summary(name: str) -> str:
    """Return the first line of a search, a comment that says what it is."""
    return _text(name).partition("\n")[0].lstrip("# ")


def read_search(name: str) -> dict[str, Any]:
    """Return the keys that a search sets."""
    return load_yaml(_text(name), f"search {name}")


def _text(name: str) -> str:
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def _folder() -> Path:
    # Not by its name as a package: a user may have a module that is called so, too.
    return Path(__file__).parents[2] / "tune_configs"
