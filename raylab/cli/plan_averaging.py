"""`raylab plan averaging --model NAME …`."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from raylab.cli.session import ray_session, write
from raylab.errors import ConfigError

__all__ = ["run"]

_DESCRIPTION = """\
Plan how data-parallel workers average: t_c, the time of an average; d = ceil(t_c / t_p), the
smallest delay that hides it behind local steps of t_p; tau = d + 1, the local steps between two
averages; and what mini-batch SGD, Local SGD and DaSGD lose to the network.

what is averaged:
  --model NAME              with --step-ms one of DASGD's Table II, for 1,000 classes, by its size:
                            network_in_network, vgg16, vgg19, resnet50, resnext50, densenet121,
                            densenet201; otherwise any model of raylab train, built and counted
  --parameters N            a size, in place of a model
  --bytes-per-parameter N   4 for float32 (default), 2 for bfloat16
  --classes N, --image-size N   of a model of raylab train (10, 32)

the network, or --measure:
  --workers N               on all nodes together
  --gpus-per-node N         workers on each node (1)
  --ethernet-gbps RATE      between nodes, each way, in gigabits a second
  --pcie-gbps RATE          within a node, each way, in gigabytes a second (PCIe 3.0 × 16: 16)
  --latency-us TIME         of one message (0)
  --all-reduce NAME         whose t_c decides: tree (default, as in the paper), butterfly, ring

the computation, or --measure:
  --step-ms TIME            t_p: forward, backward and update of a local batch

  --measure                 time what is not given: the model's step on this cluster's workers and
                            an average of its size between them (torch.distributed: NCCL on GPUs,
                            else gloo). With --workers N, t_c is scaled to N by the ring's formula
  --measured-workers N      that are timed (one on each node, at least 2)

the run:
  --tau N, --delay N        fixed, in place of d + 1 and d
  --batch N                 samples of a worker's step (64)
  --samples N               of an epoch (1281167, ImageNet)

  --table paper             DASGD's Table II computed anew, beside what the paper prints
  --json                    end with one JSON object instead of the tables; times in seconds

examples:
  raylab plan averaging --model resnet50 --workers 256 --gpus-per-node 8 --ethernet-gbps 20 \\
      --pcie-gbps 16 --step-ms 526.05 --tau 4
  raylab plan averaging --parameters 7000000000 --bytes-per-parameter 2 --workers 64 \\
      --gpus-per-node 8 --ethernet-gbps 100 --pcie-gbps 32 --step-ms 900 --all-reduce ring
  raylab plan averaging --model resnet20 --batch 32 --measure
  raylab plan averaging --table paper

exit codes:
  0    done
  1    a worker failed
  2    the input cannot be used: the message says what is wrong and what would be right
  130  interrupted
  129, 143  ended by SIGHUP or SIGTERM"""

_NETWORK = ("gpus_per_node", "ethernet_gbps", "pcie_gbps", "latency_us", "all_reduce")


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab plan averaging`; return its exit code.

    Raises:
        RaylabError: the input cannot be used, or a worker failed.
    """
    given = _parser().parse_args(argv)
    if given.table is not None:
        _refuse(given, [name for name in vars(given) if name not in ("table", "json")], "--table")
        answer = _published()
    else:
        _check(given)
        with ray_session() if given.measure else contextlib.nullcontext():
            answer = _answer(given)
    _show(answer, as_json=given.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raylab plan averaging",
        usage="raylab plan averaging --model NAME --workers N --step-ms TIME ... [--json]\n"
        "       raylab plan averaging --model NAME --measure ... [--json]\n"
        "       raylab plan averaging --table paper [--json]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=None,
    )

    def add(name: str, kind: Callable[[str], Any], **options: Any) -> None:
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS, **options)

    add("--model", str)
    for name in ("--parameters", "--bytes-per-parameter", "--classes", "--image-size"):
        add(name, _count)
    for name in ("--workers", "--gpus-per-node", "--measured-workers", "--batch", "--samples"):
        add(name, _count)
    for name in ("--ethernet-gbps", "--pcie-gbps", "--step-ms"):
        add(name, _positive)
    add("--latency-us", _non_negative)
    add("--all-reduce", str, choices=["tree", "butterfly", "ring"])
    add("--tau", _count)
    add("--delay", _natural)
    add("--table", str, choices=["paper"])
    for name in ("--measure", "--json"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    return parser


def _check(given: argparse.Namespace) -> None:
    """Refuse flags that do not go together, and name all that are missing in one message."""
    if given.model is not None:
        _refuse(given, ["parameters"], "--model")
    else:
        _refuse(given, ["classes", "image_size"], "--parameters")
    if given.measure:
        _refuse(given, _NETWORK, "--measure")
    else:
        _refuse(given, ["measured_workers"], "a network that is given")
    missing = [] if given.model or given.parameters else ["--model NAME (or --parameters N)"]
    if given.step_ms is None and not given.measure:
        missing.append("--step-ms TIME")
    elif given.step_ms is None and given.model is None and given.parameters is not None:
        missing.append("--step-ms TIME (there is no model to time)")
    if not given.measure:
        missing += _missing_of_the_network(given)
    if missing:
        other = "" if given.measure else "; --measure times the step and the network instead"
        raise ConfigError(f"raylab plan averaging still needs {', '.join(missing)}{other}")


def _missing_of_the_network(given: argparse.Namespace) -> list[str]:
    if given.workers is None:
        return ["--workers N", *([] if given.ethernet_gbps else ["--ethernet-gbps RATE"])]
    missing = []
    per_node = given.gpus_per_node or 1
    if given.workers > per_node and given.ethernet_gbps is None:
        missing.append(f"--ethernet-gbps RATE (between {given.workers // per_node} nodes)")
    if per_node > 1 and given.pcie_gbps is None:
        missing.append(f"--pcie-gbps RATE (between {per_node} workers of a node)")
    return missing


def _refuse(given: argparse.Namespace, names: Sequence[str], beside: str) -> None:
    values = {name: getattr(given, name) for name in names}
    # 0 is a value that was given, though it equals False.
    flags = [
        "--" + name.replace("_", "-")
        for name, value in values.items()
        if value is not None and value is not False
    ]
    if flags:
        raise ConfigError(f"{', '.join(flags)} cannot stand beside {beside}: leave one of them out")


def _answer(given: argparse.Namespace) -> dict[str, Any]:
    from raylab.drivers.averaging.plan import AveragingQuestion, plan_averaging
    from raylab.planner import Network

    network = None
    if not given.measure:
        network = Network(
            workers=given.workers,
            workers_per_node=given.gpus_per_node or 1,
            ethernet_gbit_s=given.ethernet_gbps,
            pcie_gbyte_s=given.pcie_gbps,
            latency_s=(given.latency_us or 0.0) / 1e6,
        )
    own = {
        "bytes_per_parameter": given.bytes_per_parameter,
        "algorithm": given.all_reduce,
        "local_batch": given.batch,
        "samples": given.samples,
    }
    return plan_averaging(
        AveragingQuestion(
            model=given.model,
            parameters=given.parameters,
            num_classes=given.classes,
            image_size=given.image_size,
            network=network,
            step_s=None if given.step_ms is None else given.step_ms / 1e3,
            workers=given.workers,
            timed=given.measured_workers,
            tau=given.tau,
            delay=given.delay,
            **{name: value for name, value in own.items() if value is not None},
        )
    )


def _published() -> dict[str, Any]:
    from raylab.planner.published_table import paper_table

    return paper_table()


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        write(json.dumps(answer, allow_nan=False))
        return
    from rich.console import Console

    from raylab.report import averaging_tables, published_tables

    console = Console()
    parts = published_tables(answer) if "table" in answer else averaging_tables(answer)
    for part in parts:
        console.print(part, highlight=False)
        console.print()


# --- values of flags


def _count(text: str) -> int:
    return int(_number(text, int, 1, "an integer >= 1"))


def _natural(text: str) -> int:
    return int(_number(text, int, 0, "an integer >= 0"))


def _positive(text: str) -> float:
    value = _number(text, float, 0, "a number > 0")
    if value == 0:
        raise argparse.ArgumentTypeError(f"must be a number > 0, but got {text!r}")
    return value


def _non_negative(text: str) -> float:
    return _number(text, float, 0, "a number >= 0")


def _number(text: str, kind: Callable[[str], float], least: float, rule: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise argparse.ArgumentTypeError(f"must be {rule}, but got {text!r}")
    return value
