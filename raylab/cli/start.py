"""Where the configuration of a command starts: a method, an experiment or a file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from raylab.config import METHODS, experiment_names, read_experiment, read_yaml
from raylab.errors import ConfigError

__all__ = ["start_from"]


def start_from(name: str) -> dict[str, Any]:
    """Return the keys that a method, an experiment or a file sets."""
    if name in METHODS:
        return {"method": name}
    experiments = experiment_names()
    if name in experiments:
        return read_experiment(name)
    if Path(name).suffix in (".yaml", ".yml"):
        return read_yaml(Path(name))
    if "=" in name:
        raise ConfigError(
            f"a NAME or FILE.yaml must come before the keys, but got {name}: "
            f"for instance raylab train adl {name}"
        )
    close = difflib.get_close_matches(name.lower(), [*METHODS, *experiments], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "raylab train --list shows them"
    if Path(name).is_file():
        hint = "a configuration's file must end in .yaml"
    raise ConfigError(
        f"NAME must be a method ({', '.join(METHODS)}), an experiment ({', '.join(experiments)}) "
        f"or a FILE.yaml, but got {name!r}: {hint}"
    )
