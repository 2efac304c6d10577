"""`raylab cluster render|check …`: the files that describe a cluster."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raylab.cli.session import write
from raylab.errors import ConfigError

__all__ = ["run"]

_DESCRIPTION = """\
Make the file that describes a cluster, and check one.

commands:
  render    fill a template in: for ray up on AWS, Google Cloud, Azure or machines of your own, or
            for KubeRay on Kubernetes
  check     say what is wrong with a file before anything is started; needs no cloud

examples:
  raylab cluster render --provider aws --gpu-type a10g --max-workers 8 --output cluster.yaml
  raylab cluster check cluster.yaml
  ray up cluster.yaml
  ray dashboard cluster.yaml                     keep it open: a tunnel
  raylab submit -- train adl stages=4
  raylab cluster render --help"""

_RENDER = """\
Fill the template of a provider in, and print it, or write it to --output. Everywhere: a head
without GPUs, workers that come with the work and go when they are idle, spot and on-demand ones,
token authentication, and a dashboard that only the head itself reaches.

examples:
  raylab cluster render --provider aws --gpu-type a10g --max-workers 8 --output cluster.yaml
  raylab cluster render --provider gcp --project mine --gpu-type l4 --market spot
  raylab cluster render --provider azure --gpu-type t4 --wheel raylab_train-0.1.0-py3-none-any.whl
  raylab cluster render --provider local --head-ip 10.0.0.1 --worker-ips 10.0.0.2,10.0.0.3 \\
      --ssh-user me
  raylab cluster render --provider kuberay --gpu-type t4 --kubernetes gke
  raylab cluster render --provider kuberay --job train adl stages=4 storage=s3://bucket/runs
  raylab cluster render --list                   the machines by provider and type of GPU

exit codes: 0 done, 2 the input cannot be used"""

_CHECK = """\
Check a file for ray up, or a RayCluster or RayJob for kubectl, without a cloud: the schema of Ray
or of KubeRay, that the token is on every machine and asked for, that the dashboard listens on
loopback only, that numbers fit, that nothing is left to be filled in.

examples:
  raylab cluster check cluster.yaml
  raylab cluster render --provider aws | raylab cluster check /dev/stdin

exit codes: 0 it can be used, 2 it cannot: the message says all that is wrong"""


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab cluster`; return its exit code.

    Raises:
        ConfigError: the input cannot be used.
    """
    commands = {"render": _render, "check": _check}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    parser = _parser("", "render|check ...", _DESCRIPTION)
    _, words = parser.parse_known_args(argv)
    if not words:
        parser.error("what is done must be render or check, but got nothing")
    close = difflib.get_close_matches(words[0], commands, n=1)
    hint = f": did you mean {close[0]}?" if close else ""
    return parser.error(f"what is done must be render or check, but got {words[0]!r}{hint}")


def _parser(name: str, usage: str, description: str) -> argparse.ArgumentParser:
    prog = f"raylab cluster {name}".strip()
    return argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _render(argv: Sequence[str]) -> int:
    from raylab.clusters import ClusterOrder, render

    parser = _render_parser()
    given = vars(parser.parse_args(argv))
    output, listed = given.pop("output"), given.pop("list")
    if listed:
        write(_machines())
        return 0
    if given["provider"] is None:
        parser.error("--provider must be given, for instance --provider aws")
    if given["worker_ips"] is not None:
        parts = (each.strip() for each in given["worker_ips"].split(","))
        given["worker_ips"] = tuple(each for each in parts if each)
    if given["job"] is not None:
        given["job"] = tuple(given["job"])
    text = render(ClusterOrder(**{key: value for key, value in given.items() if value is not None}))
    if output is None:
        sys.stdout.write(text)
        return 0
    _write_new(output, text)
    write(f"cluster: {output}")
    return 0


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"--output must not be there yet, but {path} is: delete it, or take another name"
        ) from None
    except OSError as error:
        raise ConfigError(f"--output must be a file that can be written: {error}") from None


def _render_parser() -> argparse.ArgumentParser:
    from raylab.clusters.order import MARKETS, PROVIDERS

    parser = _parser("render", "--provider NAME [options]", _RENDER)
    add = parser.add_argument
    add("--provider", help=f"{', '.join(PROVIDERS)}")
    add("--output", type=Path, metavar="FILE", help="a new file; default: standard output")
    add("--list", action="store_true", help="show the machines by provider and type of GPU")
    add("--name", help="of the cluster; default: raylab")
    add("--min-workers", type=int, metavar="N", help="that are always there; default: 0")
    add("--max-workers", type=int, metavar="N", help="at most; default: 2, of local: all")
    add("--idle-minutes", type=float, metavar="X", help="then a worker ends; default: 5")
    add("--ray-version", metavar="X.Y.Z", help="on the cluster; default: the one that is here")
    gpus = parser.add_argument_group("of the clouds and Kubernetes")
    add = gpus.add_argument
    add("--gpu-type", metavar="TYPE", help="of the workers; default: none")
    add("--gpus-per-worker", type=int, metavar="N", help="default: those of the smallest machine")
    add("--market", help=f"{', '.join(MARKETS)}; default: both, on plain Kubernetes on-demand")
    add("--image", help="of the machines or containers")
    add("--region", help="default: us-west-2, us-central1 or westus2")
    add("--zone", help="of gcp; default: the region's a")
    add("--project", help="of gcp: its id")
    add("--resource-group", metavar="NAME", help="of azure; default: the cluster's name")
    add("--disk-gb", type=int, metavar="N", help="of a machine; default: 200")
    add("--kubernetes", metavar="MAKE", help="gke, eks or aks: whose spot machines are meant")
    machines = parser.add_argument_group("of machines that are reached by SSH")
    add = machines.add_argument
    add("--head-ip", metavar="ADDRESS", help="of local")
    add("--worker-ips", metavar="A,B", help="of local")
    add("--ssh-user", metavar="NAME", help="default: ubuntu; must be given for local")
    add("--ssh-key", metavar="FILE", help="of local; default: ~/.ssh/id_ed25519")
    add("--token-file", metavar="FILE", help="on this machine; default: ~/.ray/auth_token")
    package = parser.add_argument_group("what the machines install (default: this version)")
    add = package.add_argument
    add("--wheel", type=Path, metavar="FILE", help="a wheel of this package")
    add("--requirement", metavar="SPEC", help="as pip takes it, a git+https address too")
    add("--environment", metavar="DIR", help="nothing: this virtual environment is on all of them")
    package.add_argument(
        "--job",
        nargs=argparse.REMAINDER,
        metavar="WORD",
        help="of kuberay, last: a RayJob that does raylab WORD ..., instead of a RayCluster",
    )
    return parser


def _machines() -> str:
    from raylab.clusters.machines import gpu_types
    from raylab.clusters.order import PROVIDERS

    lines = []
    for provider in PROVIDERS:
        if provider == "local":
            continue
        lines.append(f"{provider}:")
        for kind, machines in gpu_types(provider).items():
            each = ", ".join(
                f"{machine.gpus or machine.cpus}{'' if machine.gpus else ' CPUs'}"
                + (f" ({machine.machine})" if machine.machine else "")
                for machine in machines
            )
            lines.append(f"  {kind:<10} {each}")
    return "\n".join(lines)


def _check(argv: Sequence[str]) -> int:
    parser = _parser("check", "FILE [--json]", _CHECK)
    parser.add_argument("file", type=Path, metavar="FILE", help="to check")
    parser.add_argument("--json", action="store_true", help="say it as one JSON object")
    given = parser.parse_args(argv)
    from raylab.clusters import check_file

    checked = check_file(given.file)
    if given.json:
        answer: dict[str, Any] = {
            "file": str(given.file),
            "kind": checked.kind,
            "provider": checked.provider,
            "workers": {name: list(each) for name, each in checked.workers.items()},
            "notes": list(checked.notes),
        }
        write(json.dumps(answer))
        return 0
    workers = ", ".join(
        f"{fewest} to {most} {name}" for name, (fewest, most) in checked.workers.items() if most
    )
    write(
        f"{given.file} can be used: {checked.kind}, {checked.provider}, {workers or 'no workers'}"
    )
    for note in checked.notes:
        write(f"note: {note}")
    return 0
