"""`raylab plan pipeline NAME|FILE.yaml [key=value …]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from raylab.cli.session import ray_session, write
from raylab.cli.train import start_keys
from raylab.config import PipelineConfig, apply_pairs, pipeline_config

__all__ = ["run"]

_DESCRIPTION = """\
Cut a network into stages and say what every method would give, without training: the stages are
started, timed and their messages sent back and forth; then the methods run under a modelled clock.

NAME, FILE.yaml and the keys are those of raylab train: raylab train --help lists them. What
matters here are model, data, batch_size, stages, balance, accumulate, micro_batches, barrier and
optimizer. A method keeps its own delay, except for the one that is asked for.

what is shown:
  a stage       its blocks, share of the work, parameters, time of a forward and of a backward
                with its update, and the memory that it holds under the method that is asked for
  a link        the bytes of a message, its time, and the stages' own time for handling it
  a method      samples/s, speed-up over bp through the same stages, staleness in updates (mean
                over stages and batches), memory of the fullest stage; auto is ddg delay=auto

examples:
  raylab plan pipeline adl stages=4
  raylab plan pipeline demo
  raylab plan pipeline ddg model=resnet56 stages=4 balance=measured
  raylab plan pipeline ddg model=resnet56 stages=4 --counted      starts nothing
  raylab plan pipeline runs/try1/config.yaml
  raylab plan pipeline adl stages=2 --json | tail -n 1            one JSON object

exit codes:
  0    done
  1    a stage failed
  2    the input cannot be used: the message says what is wrong and what would be right
  130  interrupted
  129, 143  ended by SIGHUP or SIGTERM"""


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab plan pipeline`; return its exit code.

    Raises:
        RaylabError: the input cannot be used, or a stage failed.
    """
    parser = argparse.ArgumentParser(
        prog="raylab plan pipeline",
        usage="raylab plan pipeline NAME|FILE.yaml [key=value ...] [--counted] [--json] [--quiet]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "--counted", action="store_true", help="count operations only: no actors, no times"
    )
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object instead of the tables"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    given = parser.parse_intermixed_args(argv)
    if given.name is None:
        parser.error("NAME or FILE.yaml must be given, for instance: raylab plan pipeline adl")
    config = pipeline_config(apply_pairs(start_keys(given.name), given.settings))
    _show(_plan(config, measure=not given.counted, progress=not given.quiet), as_json=given.json)
    return 0


def _plan(config: PipelineConfig, *, measure: bool, progress: bool) -> dict[str, Any]:
    with ray_session():
        from raylab.drivers.pipeline.command import plan_pipeline

        return plan_pipeline(config, measure=measure, progress=progress)


def _show(plan: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        write(json.dumps(plan, allow_nan=False))
        return
    from rich.console import Console

    from raylab.report import plan_tables

    console = Console()
    for part in plan_tables(plan):
        console.print(part, highlight=False)
        console.print()
