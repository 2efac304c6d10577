"""`raylab submit [options] -- COMMAND …`, and what becomes of a job."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylab.cli.session import write
from raylab.errors import ConfigError

if TYPE_CHECKING:
    from raylab.drivers.submit import ClusterJobs, JobState

__all__ = ["run"]

_DEFAULT = "http://127.0.0.1:8265"
_HERE_ONLY = ("cluster", "submit")
_LOOKS = ("status", "logs", "attach", "stop")

_DESCRIPTION = """\
Run a command of raylab's on a cluster: as a job on its head, with this folder as its working
directory. Its log is shown as it grows, and the exit code is the job's. Ctrl-C only stops looking.

The cluster is the one whose dashboard is at --address: http://127.0.0.1:8265 by default, where
ray dashboard cluster.yaml brings it. Its token is that of --token-file, RAY_AUTH_TOKEN,
RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

examples:
  raylab submit -- train adl stages=4 data=digits storage=s3://bucket/runs
  raylab submit --no-wait --id night -- train dasgd workers=4 epochs=50
  raylab submit --pip requirements.txt --env OMP_NUM_THREADS=1 -- train settings.yaml
  raylab submit --status night
  raylab submit --logs night
  raylab submit --attach night
  raylab submit --stop night

What .gitignore names is not sent, nor are environments, caches, runs/ and keys; --exclude names
more.

exit codes: those of the job, 0 done, 1 failed, 2 the input cannot be used; 130 it was stopped, or
looking was"""


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab submit`; return its exit code.

    Raises:
        RaylabError: the input cannot be used, or the cluster is lost.
    """
    words = list(argv)
    command: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, command = words[:cut], words[cut + 1 :]
    parser = _parser()
    given = parser.parse_args(words)
    asked = next(
        (name for name in ("status", "logs", "attach", "stop") if getattr(given, name)), ""
    )
    if asked and command:
        parser.error(f"--{asked} takes no command, but got {shlex.join(command)}")
    if not asked:
        _check_command(command, parser)
    variables = _variables(given.env)

    from raylab.drivers.submit import ClusterJobs

    address = given.address or os.environ.get("RAY_API_SERVER_ADDRESS") or _DEFAULT
    jobs = ClusterJobs(address, _token(given.token_file, os.environ))
    if asked:
        return _look(jobs, asked, getattr(given, asked), given)
    job = jobs.submit(
        command,
        working_dir=None if given.no_upload else given.working_dir,
        excludes=given.exclude,
        requirements=given.pip,
        variables=variables,
        job=given.id,
    )
    sys.stderr.write(f"job: {job}\n")
    if given.no_wait:
        _say(jobs.state(job), as_json=given.json)
        return 0
    return _follow(jobs, job, given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raylab submit",
        usage="raylab submit [options] -- COMMAND ...\n"
        "       raylab submit --status|--logs|--attach|--stop ID [options]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--address", metavar="URL", help=f"default: RAY_API_SERVER_ADDRESS, or {_DEFAULT}")
    add("--token-file", type=Path, metavar="FILE", help="that holds the cluster's token")
    add("--working-dir", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    add("--no-upload", action="store_true", help="send no working directory")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="as in .gitignore")
    add("--pip", type=Path, metavar="FILE", help="requirements of the job and its actors")
    add("--env", action="append", default=[], metavar="KEY=VALUE", help="variable of both")
    add("--id", metavar="ID", help="of the job; default: Ray makes one")
    add("--no-wait", action="store_true", help="end when the job is on its way")
    add("--json", action="store_true", help="end with one JSON object; the log goes to stderr")
    looks = parser.add_mutually_exclusive_group()
    looks.add_argument("--status", metavar="ID", help="say how it stands with a job")
    looks.add_argument("--logs", metavar="ID", help="show what a job has said so far")
    looks.add_argument("--attach", metavar="ID", help="follow a job as if it was just sent")
    looks.add_argument("--stop", metavar="ID", help="stop a job, and wait for its end")
    return parser


def _check_command(command: Sequence[str], parser: argparse.ArgumentParser) -> None:
    from raylab.cli.main import COMMANDS

    known = [name for name in COMMANDS if name not in _HERE_ONLY]
    if not command:
        parser.error("a command must stand behind --, for instance: raylab submit -- train demo")
    if command[0] not in known:
        parser.error(f"the command must be one of {', '.join(known)}, but got {command[0]!r}")


def _variables(pairs: Sequence[str]) -> dict[str, str]:
    variables = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--env must be KEY=VALUE, but got {pair!r}")
        variables[name] = value
    return variables


def _token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """Return the cluster's token from where Ray itself looks for it; None: there is none."""
    if file is None and environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip()
    asked = file or environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(asked or "~/.ray/auth_token").expanduser()
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        if asked is None:
            return None
        raise ConfigError(
            f"the token's file must be readable, but {path} is not: {error}"
        ) from None
    if not token:
        raise ConfigError(f"the token's file must hold a token, but {path} is empty")
    return token


def _look(jobs: ClusterJobs, asked: str, job: str, given: argparse.Namespace) -> int:
    if asked == "attach":
        return _follow(jobs, job, given)
    if asked == "logs":
        text = jobs.log(job)
        sys.stdout.write(text)
        return 0
    _say(jobs.stop(job) if asked == "stop" else jobs.state(job), as_json=given.json)
    return 0


def _follow(jobs: ClusterJobs, job: str, given: argparse.Namespace) -> int:
    from raylab.cli.main import INTERRUPTED

    stream = sys.stderr if given.json else sys.stdout

    def said(text: str) -> None:
        stream.write(text)
        stream.flush()

    try:
        state = jobs.follow(job, said)
    except KeyboardInterrupt:
        where = f" --address {given.address}" if given.address else ""
        sys.stderr.write(
            f"\nraylab: job {job} goes on\n"
            f"  look again: raylab submit{where} --attach {job}\n"
            f"  stop it:    raylab submit{where} --stop {job}\n"
        )
        return INTERRUPTED
    if state.status != "SUCCEEDED":
        # What a command says of its own end is the end of its log.
        why = "" if state.exit_code is not None else f": {state.message}"
        sys.stderr.write(f"raylab: job {job} {state.status}{why}\n")
    if given.json:
        _say(state, as_json=True)
    return state.outcome


def _say(state: JobState, *, as_json: bool) -> None:
    if as_json:
        answer = {
            "job": state.job,
            "status": state.status,
            "exit_code": state.exit_code,
            "message": state.message,
        }
        write(json.dumps(answer))
        return
    write(f"{state.job} {state.status}")
