"""Claim: on a network of a given rate no tau and d that a search finds come to an accuracy sooner
than the planner's by more than a tenth.

    python -m benchmarks.tuned_delay --mbit-s 50 --storage runs/tuned_delay

Needs root, iproute2 and util-linux. Two Ray nodes, each in a network namespace behind a shaped
link, train ResNet-20 on the digits by DaSGD. `raylab plan averaging --measure` says tau and d
there; then `raylab tune` searches tau and d < tau with TPE, the planner's among the points to begin
with, for the time to `--accuracy` on the test split. The table has the trials by that time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.shaped.lan import Lan, run
from benchmarks.shaped.own_namespaces import private_places, refusal, run_in_own_namespaces
from benchmarks.shaped.ray_nodes import start_nodes
from raylab.drivers.tuning.study import TuningStudy
from raylab.records import RunFolder, Storage

_WORKERS = 2
_IMAGE_SIZE = 8


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuned_delay",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--mbit-s", type=float, default=50.0, help="of the links")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=32, help="of a worker's step")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--tau", type=int, default=16, help="largest that is searched")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=12, help="of a trial at most")
    parser.add_argument("--accuracy", type=float, default=0.95)
    parser.add_argument("--storage", type=Path, required=True, help="of the search")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def search(options: argparse.Namespace, plan: Mapping[str, int]) -> dict[str, Any]:
    """Return the search's configuration.

    Args:
        options: of the command line.
        plan: the planner's tau and delay.
    """
    return {
        "train": {
            "method": "dasgd",
            "model": options.model,
            "data": "digits",
            "image_size": _IMAGE_SIZE,
            "workers": _WORKERS,
            "batch_size": options.batch,
            "lr": options.lr,
            "epochs": options.epochs,
            "checkpoint_minutes": 0,
        },
        "space": {
            "tau": {"int": [1, options.tau], "log": True},
            "delay": {"int": [0, options.tau - 1], "below": "tau"},
        },
        "objectives": [{"metric": "time_s", "until": {"test_accuracy": options.accuracy}}],
        "search": {"start_from": [dict(plan), {"tau": 1, "delay": 0}]},
        "budget": {"trials": options.trials},
        "storage": str(options.storage.resolve()),
        "name": f"{options.mbit_s:g}-mbit-s",
    }


def measure(options: argparse.Namespace) -> None:
    """Ask the planner, search, and print the table."""
    lan = Lan(hosts=_WORKERS)
    private_places(dict(zip(lan.names, lan.addresses, strict=True)))
    run(lan.build())
    environment = start_nodes(lan)
    run(lan.shape(options.mbit_s))

    def raylab(*words: str) -> str:
        command = lan.inside(0, [sys.executable, "-m", "raylab", *words])
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
        )
        return done.stdout.decode()

    words = f"--model {options.model} --batch {options.batch} --workers {_WORKERS}"
    words += f" --image-size {_IMAGE_SIZE}"
    plan = json.loads(raylab("plan", "averaging", *words.split(), "--measure", "--json"))
    chosen = {name: plan["choice"][name] for name in ("tau", "delay")}
    config = search(options, chosen)
    options.storage.mkdir(parents=True, exist_ok=True)
    file = options.storage / "search.yaml"
    file.write_text(json.dumps(config))
    raylab("tune", str(file))
    print(
        f"\n{options.mbit_s:g} Mbit/s: t_p {1e3 * plan['step_s']:.1f} ms, "
        f"t_c {1e3 * plan['measured']['all_reduce_s']:.1f} ms; the planner: tau = {chosen['tau']}, "
        f"d = {chosen['delay']}\n\n"
    )
    table(options.storage / config["name"], options.accuracy, chosen)


def table(search: Path, accuracy: float, chosen: Mapping[str, int]) -> None:
    """Print the trials as Markdown, by their time."""
    print(f"| tau | d | s to {accuracy:.0%} | of the planner's | s an epoch |")
    print("| --- | --- | --- | --- | --- |")
    study = TuningStudy.open(search)
    trials = [each for each in study.trials() if each.values]
    planned = min(each.values[0] for each in trials if each.params == chosen)
    for each in sorted(trials, key=lambda each: float(each.values[0])):
        rows = Storage.at(search / each.user_attrs["folder"])
        ends = [row for row in RunFolder.existing(rows).read_metrics() if row["test_accuracy"]]
        # The first epoch has the connections in it.
        took = [b["time_s"] - a["time_s"] for a, b in itertools.pairwise(ends)]
        mark = "**" if each.params == chosen else ""
        point = " | ".join(f"{mark}{each.params[name]}{mark}" for name in ("tau", "delay"))
        time_s = float(each.values[0])
        print(
            f"| {point} | {time_s:.1f} | {time_s / planned:.2f} | {statistics.median(took):.2f} |"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parsed(given)
    if options.inside:
        measure(options)
        return 0
    reason = refusal()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    program = [sys.executable, "-m", "benchmarks.tuned_delay", "--inside", *given]
    return run_in_own_namespaces(program)


if __name__ == "__main__":
    sys.exit(main())
