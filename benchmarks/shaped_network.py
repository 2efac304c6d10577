"""Claim: on a network of a given rate DaSGD has 0.97 or more of the throughput that there is
without communication, wherever t_c < d t_p; what waits for its averages, raylab's or torch's, takes
within 10 % of the time that DASGD's equations (4) and (5) say.

    python -m benchmarks.shaped_network --mbit-s 100 200 400 --json shaped.json

Needs root, iproute2 and util-linux. W workers, each in a network namespace of its own behind a link
that a token bucket filter shapes both ways, average a flat parameter of `--megabytes` over gloo.
Compute is modelled, a nap of `--step-ms`, so that it does not compete with the network's own
processor time. t_p, t_c and all methods are measured in turn in every repeat, and compared within
it; the tables have medians (and ranges). All of it runs, and listens, in namespaces that end with
the program. `--ray` adds `raylab.AveragingTrainer` on Ray nodes in the same namespaces, `--peers`
torchft's local SGD.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.shaped.own_namespaces import refusal, run_in_own_namespaces


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shaped_network",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--mbit-s", type=float, nargs="+", default=[200.0], help="of the links")
    parser.add_argument("--megabytes", type=float, default=2.0, help="of the parameter")
    parser.add_argument("--step-ms", type=float, default=100.0, help="nap of a step")
    parser.add_argument("--tau", type=int, default=4)
    parser.add_argument("--delay", type=int, help="default: the planner's choice, from t_p and t_c")
    parser.add_argument("--xi", type=float, default=0.25)
    parser.add_argument("--periods", type=int, default=8, help="of tau steps, in a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has torchft")
    parser.add_argument("--ray", action="store_true", help="the trainer on Ray nodes, too")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of a wait")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all times there")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.workers < 2 or options.periods < 1 or options.repeats < 1:
        parser.error("`--workers >= 2`, `--periods >= 1` and `--repeats >= 1` must hold")
    if options.delay is not None and not 0 <= options.delay < options.tau:
        parser.error(f"0 <= delay < tau must hold, but got {options.delay} with {options.tau}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parsed(given)
    if options.inside:
        from benchmarks.shaped.session import measure_all

        measure_all(options)
        return 0
    reason = refusal()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    program = [sys.executable, "-m", "benchmarks.shaped_network", "--inside", *given]
    return run_in_own_namespaces(program)


if __name__ == "__main__":
    sys.exit(main())
