"""What is written on the page of a search: its head, the best keys, the table of trials."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from raylab.report.run_record import number
from raylab.report.tuning_keys import LEAST, usable
from raylab.report.tuning_record import TuningRecord, worded

__all__ = ["best_card", "config_card", "head", "importance_card", "trial_table"]

_ALGORITHMS = {"tpe": "TPE", "cmaes": "CMA-ES", "nsga2": "NSGA-II", "random": "random"}
_SCHEDULERS = {"asha": "ASHA", "median": "median", "none": "none: every trial runs to its end"}


def head(record: TuningRecord) -> str:
    """Return what was searched, and how."""
    config = record.config
    goals = "; ".join(f"{goal.name}, {goal.better}" for goal in record.goals)
    entries = [
        ("Runs", _runs(config.get("train", {}))),
        ("Keys", ", ".join(config.get("space", {}))),
        ("Objectives" if len(record.goals) > 1 else "Objective", goals),
        ("Search", _said(config.get("search", {}), "algorithm", _ALGORITHMS, "seed")),
        ("Ended early by", _said(config.get("scheduler", {}), "name", _SCHEDULERS, "grace")),
        ("Trials", _counts(record)),
        ("Time", _times(record.summary)),
    ]
    lines = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in entries if value
    )
    return f'<article class="card run"><h3>{escape(record.name)}</h3><dl>{lines}</dl></article>'


def _runs(train: Mapping[str, Any]) -> str:
    method = str(train.get("method", "several methods"))
    what = [str(train[key]) for key in ("model", "problem", "data") if train.get(key)]
    return f"{method}, {' on '.join(what)}" if what else method


def _said(part: Mapping[str, Any], key: str, words: Mapping[str, str], more: str) -> str:
    name = part.get(key)
    if name is None:
        return ""
    said = words.get(name, str(name))
    return said if name == "none" or part.get(more) is None else f"{said}, {more} {part[more]:g}"


def _counts(record: TuningRecord) -> str:
    states = [record.state(trial) for trial in record.trials]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _times(summary: Mapping[str, Any]) -> str:
    time_s, share = number(summary.get("time_s")), number(summary.get("start_share"))
    parts = [] if time_s is None else [f"{time_s:,.0f} s of searching"]
    if share is not None:
        parts.append(f"{share:.0%} of the trials' seconds were start-up")
    return ", ".join(parts)


def best_card(record: TuningRecord) -> str:
    """Return the best trial, and its keys as a file for `raylab train`."""
    if record.best is None:
        return '<div class="card wide"><p class="none">No trial has finished yet.</p></div>'
    number_ = record.front[0]
    trial = next(trial for trial in record.trials if trial.number == number_)
    figures = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(worded(value))}</dd></div>"
        for name, value in (
            *((goal.name, record.value(trial, goal)) for goal in record.goals),
            *trial.params.items(),
        )
    )
    more = len(record.front) - 1
    others = (
        f"<p>The best {escape(record.goals[0].name)} of the {more + 1} trials of the front; the "
        "others stand below in the table.</p>"
        if more
        else ""
    )
    return (
        f'<div class="card"><h3>Trial {number_}</h3>{others}<dl class="best">{figures}</dl></div>'
        '<div class="card"><div class="copy-head"><h3>best.yaml</h3>'
        '<button type="button" data-copy="best-yaml">Copy</button></div>'
        f'<pre id="best-yaml" tabindex="0">{escape(record.best)}</pre>'
        "<p>raylab train best.yaml</p></div>"
    )


def importance_card(record: TuningRecord) -> str:
    """Return why nothing is said of importances, where nothing is."""
    most = max(len(usable(record, goal)) for goal in record.goals)
    if most >= LEAST:
        return ""
    return (
        '<div class="card"><h3>Importance of the keys</h3><p class="none">Too few trials to '
        f"say which keys decide: {most} finished with a value, and it takes {LEAST} at least.</p>"
        "</div>"
    )


def trial_table(record: TuningRecord) -> str:
    """Return every trial, in a table that is sorted by a click on a column's head."""
    keys = record.keys
    columns = [
        "trial",
        "state",
        *(goal.name for goal in record.goals),
        *keys,
        "epochs",
        "steps",
        "start-up (s)",
        "training (s)",
    ]
    failed = any("error" in trial.user_attrs for trial in record.trials)
    columns += ["error"] if failed else []
    heads = "".join(
        f'<th scope="col"><button type="button" data-sort="{i}">{escape(column)}</button></th>'
        for i, column in enumerate(columns)
    )
    body = "".join(_row(record, trial, keys, failed=failed) for trial in record.trials)
    return (
        '<div class="card wide"><div class="scroll" tabindex="0" role="region" '
        'aria-label="Trials"><table class="results trials" id="trial-table">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _row(record: TuningRecord, trial: FrozenTrial, keys: list[str], *, failed: bool) -> str:
    notes = trial.user_attrs
    best = trial.number in record.front
    state = record.state(trial)
    name = str(trial.number)
    if trial.number in record.reported:
        name = f'<a href="{escape(str(notes["folder"]))}/report.html">{name}</a>'
    mark = '<span class="mark" style="--tone:var(--run1)" aria-hidden="true"></span>' * best
    cells = [
        _cell(trial.number, f"{mark}{name}"),
        _cell(state, f"{'best' if len(record.goals) == 1 else 'front'}" if best else escape(state)),
        *(_value(_reached(trial, k)) for k in range(len(record.goals))),
        *(_value(trial.params.get(key)) for key in keys),
        *(_value(notes.get(note)) for note in ("epochs", "steps")),
        *(_seconds(notes.get(note)) for note in ("start_s", "train_s")),
    ]
    if failed:
        error = str(notes.get("error", ""))
        cells.append(f'<td class="error" data-value="{escape(error)}">{escape(error)}</td>')
    classes = "best" if best else "faded" if trial.state != TrialState.COMPLETE else ""
    return f'<tr class="{classes}">{"".join(cells)}</tr>'


def _reached(trial: FrozenTrial, k: int) -> Any:
    """Return a trial's objective: never, where it is infinite."""
    if not trial.values:
        return None
    value = number(trial.values[k])
    return "never" if value is None else value


def _value(value: Any) -> str:
    return _cell("" if value is None else value, "—" if value is None else escape(worded(value)))


def _seconds(value: Any) -> str:
    seconds = number(value)
    return _cell("", "—") if seconds is None else _cell(seconds, f"{seconds:,.1f}")


def _cell(value: Any, shown: str) -> str:
    return f'<td data-value="{escape(str(value))}">{shown}</td>'


def config_card(record: TuningRecord) -> str:
    """Return the search's file."""
    text = yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True)
    return (
        '<div class="card wide"><div class="copy-head"><h3>config.yaml</h3>'
        '<button type="button" data-copy="config-yaml">Copy</button></div>'
        f'<pre id="config-yaml" tabindex="0">{escape(text)}</pre></div>'
    )
