"""`raylab COMMAND …`: find the command, run it, turn errors into one message and an exit code.

0  done
1  the run failed
2  the input cannot be used
129, 143  ended by SIGHUP or SIGTERM, see `raylab.drivers.termination`
130  interrupted
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from raylab._beside import check_beside
from raylab.drivers.termination import TERMINATION
from raylab.errors import RaylabError

__all__ = ["COMMANDS", "INTERRUPTED", "entry_point", "main"]

INTERRUPTED = 130
_COMPLAINT = "raylab: error: "

# A command's module is imported when the command is used, and imports torch and Ray only to work.
COMMANDS = {
    "plan": ("raylab.cli.plan", "predict a pipeline on its stages, or averaging over a network"),
    "train": ("raylab.cli.train", "train a network with one of the methods"),
    "simulate": ("raylab.cli.simulate", "run workers and what they share under virtual time"),
    "tune": ("raylab.cli.tune", "search for the best keys of a run, by many runs"),
    "resume": ("raylab.cli.resume", "go on with a run that was interrupted"),
    "compare": ("raylab.cli.compare", "train with several methods under one seed and budget"),
    "report": ("raylab.cli.report", "make a page of a run or of several"),
    "cluster": ("raylab.cli.cluster", "make and check the files that describe clusters"),
    "submit": ("raylab.cli.submit", "run a command on a cluster, as a job"),
}

_DESCRIPTION = """\
raylab trains on Ray with gradients, features and averages that do not wait for each other.

commands:
{commands}

examples:
  raylab train demo
  raylab train adl stages=2 accumulate=2 data=digits epochs=3
  raylab simulate dis_dfsdca workers=1,4,16,64 straggler=paper
  raylab plan pipeline adl stages=4
  raylab plan averaging --table paper
  raylab compare methods=bp,ddg,fr,adl epochs=3 schedule=cosine name=first
  raylab report runs/try1 runs/try2
  raylab tune adl_digits
  raylab train --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: the words after `raylab`; None: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with TERMINATION.handled():
        code: int | None = None
        try:
            check_beside()
            code = _run(words)
        except BaseException as error:
            # A signal comes out as whatever it has interrupted makes of it.
            if not TERMINATION.requested:
                return _complain(TERMINATION.failure or error)
        if TERMINATION.requested:
            sys.stderr.write(f"raylab: {TERMINATION.line(done=code is not None)}\n")
            return TERMINATION.exit_code
        return code or 0


def entry_point() -> NoReturn:
    """Run the command line of this process and exit."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output, `head` say, has gone: the interpreter must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _complain(error: BaseException) -> int:
    """Say why a command has failed; return its exit code."""
    if isinstance(error, SystemExit):  # argparse, after --help or a complaint
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, RaylabError):
        # The further lines of a message stand below its first one.
        message = str(error).replace("\n", "\n" + " " * len(_COMPLAINT))
        sys.stderr.write(f"{_COMPLAINT}{message}\n")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write("raylab: interrupted\n")
        return INTERRUPTED
    raise error


def _run(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[words[0]][0])
        code: int = module.run(words[1:])
        return code
    parser = argparse.ArgumentParser(
        prog="raylab",
        usage="raylab COMMAND ...",
        description=_DESCRIPTION.format(
            commands="\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    given = parser.parse_args(words)
    if given.version:
        from raylab import __version__

        sys.stdout.write(f"raylab {__version__}\n")
        return 0
    if given.command is not None:
        close = difflib.get_close_matches(given.command, COMMANDS, n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        known = ", ".join(COMMANDS)
        parser.error(f"COMMAND must be one of {known}, but got {given.command!r}{hint}")
    parser.print_help(sys.stderr)
    return 2
