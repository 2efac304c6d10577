"""The help of `raylab train` and `raylab simulate`, made from the configuration itself, so that it
cannot fall behind.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from pydantic.fields import FieldInfo

from raylab.config import (
    AVERAGING_METHODS,
    FAMILIES,
    AveragingSimulationConfig,
    Family,
    SimulationConfig,
    experiment_names,
    experiment_summary,
)
from raylab.config.averaging import AVERAGING_MACHINE
from raylab.config.rules import rule_of, takes_choices
from raylab.config.simulation import MACHINE, SIMULATED

__all__ = ["simulate_help", "starts", "train_help"]

_NARROWEST, _WIDEST = 72, 110

_TOP = """\
Train a network as a pipeline of Ray actors or as replicas that average, or a model with a parameter
server and its workers, on this machine or on the cluster that Ray is connected to. Nothing needs to
be set: every key has a default."""

_SIMULATED = """\
Run a server and its workers, or replicas that average, under virtual time, in this process: the
code that decides and computes is that of raylab train, the clock is a model. No Ray is started; a
run repeats itself bit for bit, and 1,000 workers need no cluster. What is computed is computed, and
takes its time."""

_SIMULATED_EXAMPLES = """\
examples:
  raylab simulate dis_dfsdca workers=64 straggler=paper
  raylab simulate dis_dfsdca data=libsvm:a9a.bz2 workers=1,2,4,8 name=speedup
  raylab simulate asysvrg problem=logistic data=libsvm:rcv1.bz2 workers=16 latency_s=1e-3
  raylab simulate cocoa_plus workers=8 bandwidth=1e9 straggler=heavy:shape=1.5
  raylab simulate runs/real/config.yaml sample_s=2e-5 name=model
  raylab report runs/real runs/model              both in every plot
  raylab simulate dasgd workers=32 tau=4 delay=1 step_s=0.1 ethernet_gbit_s=10 epochs=5
  raylab simulate sdca --json --quiet             one JSON object, for programs"""

_SIMULATED_FILES = """\
a run leaves the files of raylab train in STORAGE/NAME; several numbers of workers leave a folder
each, STORAGE/NAME/workers-K, and one report over all. time_s and all rates are in virtual seconds,
and clock: virtual in config.yaml and result.json says so."""

_EXAMPLES = """\
examples:
  raylab train demo
  raylab train adl stages=4 accumulate=2 data=digits epochs=3 storage=runs name=try1
  raylab train ddg model=resnet56 data=cifar10 download=true recipe=ddg epochs=300
  raylab train fr model=mlp stages='[1,2]' model_options.hidden='[128,64]'
  raylab train bp data=npz:images.npz optimizer=adam lr=1e-3 schedule=cosine epochs=10
  raylab train dasgd workers=2 tau=4 delay=1 data=digits epochs=3
  raylab train local_sgd workers='[1,4]' tau=8 model=resnet56 data=cifar10 epochs=50
  raylab train dis_dfsdca problem=ridge data=libsvm:a9a.bz2 workers=4 straggler=paper
  raylab train asysvrg problem=logistic data=libsvm:rcv1.bz2 workers=8 tolerance=1e-6
  raylab train shared_asysvrg problem=ridge data=libsvm:a9a.bz2 workers=2
  raylab train asysgd problem=cartpole workers=4
  raylab train runs/try1/config.yaml name=try2       repeats try1, bit for bit
  raylab train runs/try1/config.yaml name=try3 seed=1
  raylab train demo --json --quiet | tail -n 1       one JSON object, for programs"""

_FILES = """\
a run leaves in STORAGE/NAME:
  config.yaml                every key, with all defaults resolved
  metrics.parquet            a row an epoch (or per report_every batches, or per certificate)
  timeline.parquet           of a pipeline: what each stage did when, in the first batches
  report.html                all of it to look at, a page that works offline
  result.json                summary, versions, seed, commit
  checkpoints/final/model.pt the trained weights, a state_dict"""

_EXIT_CODES = """\
exit codes:
  0    done
  1    the run failed, for instance because the loss became NaN
  2    the input cannot be used: the message says what is wrong and what would be right
  130  interrupted
  129, 143  ended by SIGHUP or SIGTERM"""


def train_help() -> str:
    """Return everything below the usage line."""
    width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    return "\n\n".join([_TOP, starts(width), _EXAMPLES, _keys(width), _FILES, _EXIT_CODES])


def simulate_help() -> str:
    """Return everything below the usage line of `raylab simulate`."""
    width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    keys = [
        "keys of the virtual machine, each with its default; the other keys are those of",
        "raylab train; wires, resources and checkpoints change nothing:",
    ]
    for title, names, config in (
        ("a server and its workers", MACHINE, SimulationConfig),
        ("replicas that average", AVERAGING_MACHINE, AveragingSimulationConfig),
    ):
        keys += ["", f"for {title}:"]
        keys += [line for name in names for line in _key(name, config.model_fields[name], width)]
    simulated = {**AVERAGING_METHODS, **SIMULATED}
    methods = ["methods:", *_columns(simulated.items(), 16, width)]
    parts = ["\n".join(methods), _SIMULATED_EXAMPLES, "\n".join(keys), _SIMULATED_FILES]
    return "\n\n".join([_SIMULATED, *parts, _EXIT_CODES])


def starts(width: int = _WIDEST) -> str:
    """Return what NAME may be: the methods and the experiments, a line each."""
    experiments = [(name, experiment_summary(name)) for name in experiment_names()]
    return "\n".join(
        [
            "NAME is a method, with the defaults below,",
            *(line for family in FAMILIES for line in _family(family, width)),
            "or an experiment, which sets some keys:",
            *_columns(experiments, 16, width),
        ]
    )


def _family(family: Family, width: int) -> list[str]:
    return [f"of {family.title}:", *_columns(family.methods.items(), 16, width)]


def _keys(width: int) -> str:
    lines = [
        "keys, set as key=value. The value is YAML (true, null, 1e-3, '[3,6]'), and a dot reaches",
        "into a mapping. A key on the command line goes before the same key in an experiment or",
        "a file. Each key with its default:",
    ]
    for family in FAMILIES:
        lines += ["", f"for {family.title}:"]
        for name, field in family.fields.items():
            lines += _key(name, field, width)
    return "\n".join(lines)


def _key(name: str, field: FieldInfo, width: int) -> list[str]:
    text = field.description or ""
    if takes_choices(field):
        text = f"{rule_of(field)}: {text}"
    return _columns([(f"{name}={_typed(field.default)}", text)], 26, width)


def _columns(rows: Iterable[tuple[str, str]], first: int, width: int) -> list[str]:
    lines = []
    for name, text in rows:
        lead = f"  {name:<{first - 1}} "
        lines += textwrap.wrap(
            text, width, initial_indent=lead, subsequent_indent=" " * (first + 2),
            break_on_hyphens=False,
        )  # fmt: skip
    return lines


def _typed(value: Any) -> str:
    """Return a default as it would be typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
