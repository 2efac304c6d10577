"""`raylab compare methods=… [NAME|FILE.yaml] [key=value …] [seeds=0,1,2]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raylab.cli.report import write_report
from raylab.cli.session import ray_session, write
from raylab.cli.train import start_keys
from raylab.config import (
    ALL_METHODS,
    ParameterServerConfig,
    RunConfiguration,
    apply_pairs,
    family_of,
    run_config,
)
from raylab.errors import ConfigError

__all__ = ["run"]

_DESCRIPTION = """\
Train with one method after another under the same seed, data and budget: a table and one report
over all runs at the end. Each run has its folder in STORAGE/NAME. A method that fails is a row
that says so. The same command again, with the same name, goes on with what has not finished.

  methods=bp,ddg,fr,adl   the methods, of one family; speeds are told against the first
  seeds=0,1,2             runs of each method, default: the seed of the configuration

All keys of `raylab train` may follow; NAME or FILE.yaml set some of them.

examples:
  raylab compare methods=bp,ddg,fr,adl epochs=3 schedule=cosine name=first
  raylab compare methods=bp,adl demo seeds=0,1,2 epochs=6 storage=runs name=demo
  raylab compare methods=ddg,adl model=mlp stages=3 --json --quiet | tail -n 1
  raylab compare methods=minibatch_sgd,local_sgd,dasgd workers=2 epochs=3 schedule=cosine
  raylab compare methods=dis_dfsdca,cocoa_plus data=libsvm:a9a.bz2 straggler=paper workers=8"""


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab compare`; return its exit code.

    Raises:
        InputError: the configuration cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="raylab compare",
        usage="raylab compare methods=A,B[,...] [NAME|FILE.yaml] [key=value ...] [seeds=0,1] "
        "[--json] [--quiet]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object instead of the table"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    given = parser.parse_intermixed_args(argv)
    config, methods, seeds = _parsed(given.words)
    outcomes, report = _compare(config, methods, seeds, quiet=given.quiet)
    finished = any(not each["error"] for each in outcomes)
    if given.json:
        answer = {
            "name": config.name,
            "report": report,
            "runs": outcomes,
        }
        write(json.dumps(answer, allow_nan=False))
        return 0 if finished else 1
    from rich.console import Console

    from raylab.report import compare_table

    Console().print(compare_table(_what(config), outcomes))
    if report is not None:
        write(f"report: {report}")
    return 0 if finished else 1


def _what(config: RunConfiguration) -> str:
    what = config.problem if isinstance(config, ParameterServerConfig) else config.model
    return what if config.data is None else f"{what} on {config.data}"


def _parsed(words: Sequence[str]) -> tuple[RunConfiguration, list[str], list[int]]:
    own: dict[str, str] = {}
    pairs: list[str] = []
    names: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in ("methods", "seeds"):
            own[key] = value
        else:
            (pairs if equals else names).append(word)
    if "methods" not in own:
        raise ConfigError(
            "methods must be given, for instance: raylab compare methods=bp,ddg,fr,adl"
        )
    if len(names) > 1:
        raise ConfigError(f"there must be one NAME or FILE.yaml at most, but got {names}")
    methods = _list(own["methods"], "methods")
    for method in methods:
        if method not in ALL_METHODS:
            raise ConfigError(f"methods must be of {', '.join(ALL_METHODS)}, but got {method!r}")
    start = start_keys(names[0]) if names else {}
    family = family_of({"method": methods[0]})
    others = [method for method in methods if method not in family.methods]
    if others:
        raise ConfigError(
            f"methods must be of one family, but {methods[0]} is of {family.title}, and "
            f"{', '.join(others)} not"
        )
    config = run_config(apply_pairs({**start, "method": methods[0]}, pairs))
    seeds = [config.seed]
    if "seeds" in own:
        texts = _list(own["seeds"], "seeds")
        if not all(text.isdecimal() and int(text) < 2**32 for text in texts):
            raise ConfigError(f"seeds must be whole numbers >= 0, but got {own['seeds']}")
        seeds = [int(text) for text in texts]
    if config.name is None:
        from raylab.records import new_run_name

        config = config.model_copy(update={"name": new_run_name("compare")})
    return config, methods, seeds


def _list(text: str, what: str) -> list[str]:
    parts = [part.strip() for part in text.strip("[]").split(",")]
    if not all(parts) or len(set(parts)) != len(parts):
        raise ConfigError(f"{what} must be a list without repetition, such as a,b, but got {text}")
    return parts


def _compare(
    config: RunConfiguration, methods: Sequence[str], seeds: Sequence[int], *, quiet: bool
) -> tuple[list[dict[str, Any]], str | None]:
    def say(text: str) -> None:
        if not quiet:
            sys.stderr.write(f"{text}\n")

    with ray_session():
        from raylab import WarmActors
        from raylab.drivers.compare import compare, held, plan_comparison

        with held(config), WarmActors():
            planned = plan_comparison(config, methods, seeds)
            outcomes = list(compare(planned, progress=not quiet, say=say))
    paths = [each["path"] for each in outcomes if not each["error"]]
    if not paths:
        return outcomes, None
    from raylab.report import read_runs

    return outcomes, write_report(read_runs(paths), str(Path(paths[0]).parent))
