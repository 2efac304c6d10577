"""`raylab train NAME|FILE.yaml [key=value …]`."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raylab.cli.help import starts, train_help
from raylab.cli.session import ray_session, say_result, write
from raylab.config import (
    ALL_METHODS,
    RunConfiguration,
    apply_pairs,
    experiment_names,
    experiment_summary,
    read_experiment,
    read_yaml,
    run_config,
)
from raylab.errors import ConfigError

__all__ = ["run", "start_keys"]


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab train`; return its exit code.

    Raises:
        RaylabError: the input cannot be used, or the run failed.
    """
    parser = argparse.ArgumentParser(
        prog="raylab train",
        usage="raylab train NAME|FILE.yaml [key=value ...] [--json] [--quiet]\n"
        "       raylab train --list [--json]",
        description=train_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object instead of the table"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--list", action="store_true", help="list methods and experiments")
    given = parser.parse_intermixed_args(argv)
    if given.list:
        write(_listed() if given.json else starts())
        return 0
    if given.name is None:
        parser.error("NAME or FILE.yaml must be given, for instance: raylab train demo")
    config = run_config(apply_pairs(start_keys(given.name), given.settings))
    _train(config, as_json=given.json, progress=not given.quiet)
    return 0


def start_keys(name: str) -> dict[str, Any]:
    """Return the keys that a method, an experiment or a file sets."""
    if name in ALL_METHODS:
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
    close = difflib.get_close_matches(name.lower(), [*ALL_METHODS, *experiments], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "raylab train --list shows them"
    if Path(name).is_file():
        hint = "a configuration's file must end in .yaml"
    raise ConfigError(
        f"NAME must be a method ({', '.join(ALL_METHODS)}), an experiment "
        f"({', '.join(experiments)}) or a FILE.yaml, but got {name!r}: {hint}"
    )


def _train(config: RunConfiguration, *, as_json: bool, progress: bool) -> None:
    with ray_session():
        from raylab.drivers.commands import train

        result = train(config, progress=progress)
    say_result(result.summary, as_json=as_json)


def _listed() -> str:
    experiments = {name: experiment_summary(name) for name in experiment_names()}
    return json.dumps({"methods": ALL_METHODS, "experiments": experiments})
