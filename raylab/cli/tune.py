"""`raylab tune NAME|FILE.yaml [key=value …]`."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raylab.cli.session import ray_session, write
from raylab.config import apply_pairs, family_of, read_yaml
from raylab.config.rules import rule_of
from raylab.config.searches import read_search, search_names, search_summary
from raylab.config.space import base_of
from raylab.config.tuning import TuningConfig, tuning_config
from raylab.config.tuning_keys import BudgetConfig, SchedulerConfig, SearchConfig, TuningKeys
from raylab.errors import ConfigError

__all__ = ["resume_here", "run"]

_DESCRIPTION = """\
Search for the best keys of a run: many runs on the cluster, each a trial in a placement group of
its own, chosen by Optuna from those before, the hopeless ones ended early. NAME is a search that
ships with the package, FILE.yaml one of your own:

  train: {{method: dasgd, data: digits, workers: 2, epochs: 4}}   as raylab train takes it
  space:
    lr: {{uniform: [0.001, 1.0], log: true}}
    tau: {{int: [1, 16], log: true}}
    delay: {{int: [0, 15], below: tau}}             less than the tau that was chosen
    optimizer: {{choice: [sgd, nag, lars]}}
    momentum: {{uniform: [0, 0.99], when: {{optimizer: [sgd, nag]}}}}
  objectives: [{{metric: test_loss}}]              or several:
    # [{{metric: test_accuracy}}, {{metric: time_s, until: {{test_accuracy: 0.9}}}}]
  search: {{algorithm: tpe, seed: 0, start_from: [{{lr: 0.1}}]}}
  scheduler: {{name: asha, grace: 1, reduction: 3}}
  budget: {{trials: 32, minutes: 10}}

keys, which may follow as key=value, such as train.epochs=8 or budget.trials=16:
{keys}

searches:
{searches}

STORAGE/NAME has best.yaml, which raylab train takes, result.json, study.db (Optuna's:
optuna-dashboard sqlite:///STORAGE/NAME/study.db), and trials/N with the files of each run. What is
killed at any moment goes on with --resume: no trial's result is lost, none is run twice.

examples:
  raylab tune adl_digits
  raylab tune dasgd_digits budget.trials=8 storage=runs name=first
  raylab tune FILE.yaml concurrent=4 train.gpus_per_worker=0.5
  raylab tune --resume runs/first budget.trials=32
  raylab train runs/first/best.yaml epochs=50

exit codes: 0 done, 1 no trial has ended well, 2 the input cannot be used, 130 interrupted,
129 or 143 ended by SIGHUP or SIGTERM"""


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab tune`; return its exit code.

    Raises:
        RaylabError: the input cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="raylab tune",
        usage="raylab tune NAME|FILE.yaml [key=value ...] [--json] [--quiet]\n"
        "       raylab tune --resume PATH [key=value ...] [--json] [--quiet]\n"
        "       raylab tune --list [--json]",
        description=_DESCRIPTION.format(keys=_keys(), searches=_searches()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--resume", metavar="PATH", help="go on with the search in this folder")
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object instead of the table"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--list", action="store_true", help="list the searches of the package")
    given = parser.parse_intermixed_args(argv)
    if given.list:
        listed = {name: search_summary(name) for name in search_names()}
        write(json.dumps({"searches": listed}) if given.json else _searches())
        return 0
    if given.resume is not None:
        return resume_here(given.resume, given.words, as_json=given.json, progress=not given.quiet)
    if not given.words or "=" in given.words[0]:
        parser.error("NAME or FILE.yaml must be given, for instance: raylab tune adl_digits")
    config = _config(given.words[0], given.words[1:])
    with ray_session():
        from raylab.drivers.tuning.tune import tune

        grid = tune(config, progress=not given.quiet)
    return _say(Path(grid.experiment_path).parent, as_json=given.json)


def resume_here(path: str, pairs: Sequence[str], *, as_json: bool, progress: bool) -> int:
    """Go on with a search; return the exit code.

    Raises:
        RaylabError: the input cannot be used.
    """
    with ray_session():
        from raylab.drivers.tuning.tune import resume_tuning

        resume_tuning(path, pairs, progress=progress)
    return _say(Path(path).expanduser().absolute(), as_json=as_json)


def _say(folder: Path, *, as_json: bool) -> int:
    summary: Mapping[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    code = 0 if summary["best"] is not None else 1
    if as_json:
        write(json.dumps(summary, allow_nan=False))
        return code
    from rich.console import Console

    from raylab.report import tuning_table

    Console().print(tuning_table(f"tuning {folder.name}", summary))
    if summary["best"] is not None:
        write(f"best: raylab train {folder}/best.yaml")
    write(f"results: {folder}")
    if (folder / "report.html").is_file():
        write(f"report: {folder}/report.html")
    return code


def _config(name: str, pairs: Sequence[str]) -> TuningConfig:
    values = _start(name)
    train, space = values.get("train"), values.get("space")
    base = base_of(space, train) if isinstance(train, dict) and isinstance(space, dict) else {}
    family = family_of(base)
    fields = {
        **TuningKeys.model_fields,
        **{f"train.{key}": field for key, field in family.fields.items()},
    }
    return tuning_config(apply_pairs(values, pairs, fields))


def _start(name: str) -> dict[str, Any]:
    names = search_names()
    if name in names:
        return read_search(name)
    if Path(name).suffix in (".yaml", ".yml"):
        return read_yaml(Path(name))
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "raylab tune --list shows them"
    raise ConfigError(
        f"NAME must be a search ({', '.join(names)}) or a FILE.yaml, but got {name!r}: {hint}"
    )


def _searches() -> str:
    return "\n".join(f"  {name:<18} {search_summary(name)}" for name in search_names())


def _keys() -> str:
    lines = []
    for inside, model in (
        ("", TuningKeys),
        ("search.", SearchConfig),
        ("scheduler.", SchedulerConfig),
        ("budget.", BudgetConfig),
    ):
        for name, field in model.model_fields.items():
            if not inside and name in ("search", "scheduler", "budget"):
                continue
            lines.append(f"  {inside + name:<20} {field.description} ({rule_of(field)})")
    return "\n".join(lines)
