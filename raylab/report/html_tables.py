"""Tables of the page: the head of every run, the results, the configurations side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from raylab.report.palette import run_tone
from raylab.report.run_record import RunRecord, number

__all__ = ["config_table", "heads", "result_table", "run_mark"]

_VERSIONS = ("raylab-train", "torch", "ray", "python")
_OWN = ("name", "storage", "path", "measured", "plan")
"""Keys that tell nothing about how two runs differ."""
_TITLES = {
    "bp": "back-propagation",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "ddg": "DDG",
    "fr": "Features Replay",
    "adl": "ADL",
    "dsp": "DSP",
    "dni": "DNI",
    "dgl": "DGL",
    "asysvrg": "AsySVRG",
    "shared_asysvrg": "AsySVRG in shared memory",
    "asysgd": "AsySGD",
    "sgd_svrg": "SGD, then SVRG",
    "dis_dfsdca": "Dis-dfSDCA",
    "dfsdca": "dfSDCA",
    "sdca": "SDCA",
    "cocoa_plus": "CoCoA+",
    "minibatch_sgd": "mini-batch SGD",
    "local_sgd": "Local SGD",
    "dasgd": "DaSGD",
}
_FIGURES = (
    ("return, greedy policy", "greedy_return", ",.1f"),
    ("return, last of training", "mean_return", ",.1f"),
    ("duality gap", "duality_gap", ".2e"),
    ("gradient norm", "gradient_norm", ".2e"),
    ("primal value", "primal", ",.8f"),
    ("relation", "relation", ".1e"),
    ("test accuracy", "test_accuracy", ".2%"),
    ("test loss", "test_loss", ",.4f"),
    ("training accuracy", "accuracy", ".2%"),
    ("training loss", "loss", ",.4f"),
)
_SUMMARY = (
    ("samples/s", "samples_per_s", ",.1f"),
    ("mean staleness (updates)", "staleness_mean", ",.3f"),
    ("waited for the network", "blocked_share", ".2%"),
    ("sent (MiB)", "sent_mib", ",.1f"),
    ("time (s)", "time_s", ",.1f"),
)


def run_mark(index: int) -> str:
    """Return the coloured mark of a run."""
    return f'<span class="mark" style="--tone:var(--{run_tone(index)})" aria-hidden="true"></span>'


def heads(runs: Sequence[RunRecord]) -> str:
    """Return a card per run: what it was and what it ran on."""
    return "\n".join(_head(i, run) for i, run in enumerate(runs))


def _head(index: int, run: RunRecord) -> str:
    config, result = run.config, run.result
    method = str(config.get("method", "?"))
    versions = result.get("versions")
    versions = versions if isinstance(versions, Mapping) else {}
    entries = [
        ("Method", _TITLES.get(method, method)),
        *(_of_workers(run) if "workers" in config else _of_stages(run)),
        ("Seed", _shown(config.get("seed", result.get("seed", "?")))),
        ("Versions", ", ".join(f"{n} {versions[n]}" for n in _VERSIONS if n in versions)),
        ("Commit", str(result.get("commit") or "")[:12]),
        ("Machine", str(result.get("machine") or "")),
    ]
    lines = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in entries if value
    )
    return (
        f'<article class="card run" data-run="{index}">'
        f"<h3>{run_mark(index)}{escape(run.name)}</h3><dl>{lines}</dl></article>"
    )


def _of_stages(run: RunRecord) -> list[tuple[str, str]]:
    config = run.config
    return [
        ("Stages", f"K = {run.stages}"),
        ("Accumulation", f"M = {_shown(config.get('accumulate', '?'))}"),
        ("Delays", _delays(run)),
        ("Model", " on ".join(_shown(config[k]) for k in ("model", "data") if k in config)),
    ]


def _of_workers(run: RunRecord) -> list[tuple[str, str]]:
    config = run.config
    if run.averages:
        numbers = [
            f"{name} = {_shown(config[name])}{what}"
            for name, what in (("tau", " steps"), ("delay", " of them late"), ("xi", ""))
            if config.get(name) is not None
        ]
        return [
            ("Workers", f"W = {_shown(run.rows[-1].get('workers', config['workers']))}"),
            ("Averages", ", ".join(numbers)),
            ("Model", " on ".join(_shown(config[k]) for k in ("model", "data") if k in config)),
        ]
    names = (("Step", "eta"), ("Local steps", "local_steps"), ("Stragglers", "straggler"))
    return [
        ("Workers", f"K = {_shown(run.rows[-1].get('workers', config['workers']))}"),
        ("Problem", " on ".join(_shown(config[k]) for k in ("problem", "data") if config.get(k))),
        *((title, _shown(config[key])) for title, key in names if config.get(key) is not None),
        ("Ended by", _shown(run.result.get("ended_by", ""))),
    ]


def _delays(run: RunRecord) -> str:
    delay = run.config.get("delay")
    if isinstance(delay, list):
        numbers = ", ".join(map(_shown, delay))
        return f"{numbers} batches over the links" if delay else "none"
    return "none" if run.config.get("method") in ("bp", "gpipe", "1f1b") else _shown(delay)


def result_table(runs: Sequence[RunRecord]) -> str:
    """Return the final figures, a row a run."""
    columns = [
        (title, [_final(run, key) for run in runs], form)
        for title, key, form in (*_FIGURES, *_SUMMARY)
    ]
    columns = [each for each in columns if any(value is not None for value in each[1])]
    head = "".join(f'<th scope="col">{title}</th>' for title, _, _ in columns)
    body = "".join(
        f'<tr data-run="{i}"><th scope="row">{run_mark(i)}{escape(run.name)}</th>'
        + "".join(f"<td>{_formatted(values[i], form)}</td>" for _, values, form in columns)
        + "</tr>"
        for i, run in enumerate(runs)
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Results">'
        f'<table class="results"><thead><tr><th scope="col">run</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def config_table(runs: Sequence[RunRecord]) -> str:
    """Return all keys, a column a run, with those that differ marked."""
    flat = [_flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    rows = []
    for key in keys:
        values = [_shown(each[key]) if key in each else "—" for each in flat]
        differs = len(set(values)) > 1 and key.partition(".")[0] not in _OWN
        mark = '<span class="differs">differs</span>' if differs else ""
        cells = "".join(f'<td data-run="{i}">{escape(v)}</td>' for i, v in enumerate(values))
        rows.append(
            f'<tr class="{"different" if differs else "same"}"><th scope="row">{escape(key)}{mark}'
            f"</th>{cells}</tr>"
        )
    head = "".join(
        f'<th scope="col" data-run="{i}">{run_mark(i)}{escape(run.name)}</th>'
        for i, run in enumerate(runs)
    )
    only = (
        '<label class="switch"><input type="checkbox" id="only-differences"> '
        "Only what differs</label>"
        if len(runs) > 1
        else ""
    )
    return (
        f'{only}<div class="scroll" tabindex="0" role="region" aria-label="Configuration">'
        f'<table class="config" id="config"><thead><tr><th scope="col">key</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _final(run: RunRecord, key: str) -> float | None:
    if key == "sent_mib":
        sent = number(run.result.get("bytes")) if run.averages else None
        return None if sent is None else sent / 2**20
    if key in ("samples_per_s", "staleness_mean", "blocked_share"):
        # Of the whole run, where its summary has them, and not of the last row.
        whole = number(run.result.get(key))
        return run.last(key) if whole is None else whole
    return run.last(key)


def _formatted(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    """Return a value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)
