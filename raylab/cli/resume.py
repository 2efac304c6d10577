"""`raylab resume PATH [key=value …]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from raylab.cli.session import ray_session, say_result
from raylab.cli.tune import resume_here

__all__ = ["run"]

_DESCRIPTION = """\
Go on with a run that was interrupted, in its folder, from its newest checkpoint.

Nothing is lost but the time since then. The checkpoint of a pipeline holds what was in flight
between the stages, so that the run ends as if it had not been interrupted, bit for bit; that of a
parameter server holds w and the duals that go with it; that of averaging workers holds every
replica. A run that has no checkpoint yet begins again.

Keys that do not make it another run may be given anew, among them epochs, stages, workers,
servers, wire, checkpoint_every, checkpoint_minutes and max_failures. With other stages (or delays)
a pipeline goes on from the whole model, and fills anew; with other workers the samples and their
duals are divided anew, with other servers w is, and averaging replicas begin at their mean.

examples:
  raylab resume runs/try1
  raylab resume runs/try1 --step 1200       an older checkpoint; those after it are deleted
  raylab resume runs/try1 stages=8          on more stages
  raylab resume runs/ridge workers=8        with more workers
  raylab resume runs/try1 epochs=20         a finished run goes on from its last checkpoint
  raylab resume s3://bucket/runs/try1 --json
  raylab resume runs/search budget.trials=64    a search, as raylab tune --resume does

exit codes: 0 done, 1 the run failed, 2 the input cannot be used, 130 interrupted,
129 or 143 ended by SIGHUP or SIGTERM"""


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab resume`; return its exit code.

    Raises:
        RaylabError: the input cannot be used, or the run failed.
    """
    parser = argparse.ArgumentParser(
        prog="raylab resume",
        usage="raylab resume PATH [key=value ...] [--step N] [--json] [--quiet]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, help="go on from the checkpoint of this step")
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object instead of the table"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    given = parser.parse_intermixed_args(argv)
    if (Path(given.path).expanduser() / "study.db").is_file():
        progress = not given.quiet
        return resume_here(given.path, given.settings, as_json=given.json, progress=progress)
    with ray_session():
        from raylab.drivers.commands import resume

        result = resume(given.path, given.settings, step=given.step, progress=not given.quiet)
    say_result(result.summary, as_json=given.json)
    return 0
