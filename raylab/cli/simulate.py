"""`raylab simulate NAME|FILE.yaml [key=value …]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raylab.cli.help import simulate_help
from raylab.cli.report import write_report
from raylab.cli.session import say_result, write
from raylab.cli.train import start_keys
from raylab.config import (
    AveragingSimulationConfig,
    SimulationConfig,
    apply_pairs,
    simulation_config,
)

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab simulate`; return its exit code.

    Raises:
        RaylabError: the input cannot be used, or the run failed.
    """
    parser = argparse.ArgumentParser(
        prog="raylab simulate",
        usage="raylab simulate NAME|FILE.yaml [key=value ...] [--json] [--quiet]",
        description=simulate_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object instead of the table"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    given = parser.parse_intermixed_args(argv)
    if given.name is None:
        parser.error(
            "NAME or FILE.yaml must be given, for instance: raylab simulate dis_dfsdca workers=64"
        )
    pairs = [_listed(pair) for pair in given.settings]
    config = simulation_config(apply_pairs(start_keys(given.name), pairs))
    if isinstance(config, AveragingSimulationConfig):
        from raylab.drivers.averaging.simulated import simulate_averaging

        summary = simulate_averaging(config, progress=not given.quiet)
        say_result(summary, as_json=given.json)
        return 0
    _simulate(config, as_json=given.json, progress=not given.quiet)
    return 0


def _listed(pair: str) -> str:
    """Return workers=1,2,4 as YAML has a list."""
    key, _, value = pair.partition("=")
    several = key == "workers" and "," in value and not value.startswith("[")
    return f"workers=[{value}]" if several else pair


def _simulate(config: SimulationConfig, *, as_json: bool, progress: bool) -> None:
    from raylab.drivers.server.simulated import planned_simulations, simulate_run

    planned = planned_simulations(config)
    summaries: list[dict[str, Any]] = []
    for index, each in enumerate(planned, start=1):
        if progress and len(planned) > 1:
            sys.stderr.write(f"[{index}/{len(planned)}] workers={each.workers}\n")
        summaries.append(simulate_run(each, progress=progress))
    if len(planned) == 1:
        say_result(summaries[0], as_json=as_json)
        return
    _say_all(summaries, as_json=as_json)


def _say_all(summaries: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    from raylab.report import read_runs, workers_table

    folder, _, _ = summaries[0]["path"].rpartition("/")
    runs = read_runs([each["path"] for each in summaries])
    report = write_report(runs, folder)
    if as_json:
        answer = {"name": Path(folder).name, "report": report, "runs": list(summaries)}
        write(json.dumps(answer, allow_nan=False))
        return
    from rich.console import Console

    config = summaries[0]["config"]
    title = f"{config['method']}: {config['problem']} on {config['data']}, simulated"
    Console().print(workers_table(title, runs))
    write(f"results: {folder}")
    write(f"report: {report}")
