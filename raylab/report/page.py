"""Runs into one HTML page that needs nothing but itself: no network, no file beside it."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

import plotly.io
from plotly.offline import get_plotlyjs

from raylab.report.averaging import replicas
from raylab.report.certificates import certificates, speed_up
from raylab.report.curves import learning_curves, throughput
from raylab.report.figure import Figure
from raylab.report.gantt import timelines
from raylab.report.html_tables import config_table, heads, result_table, run_mark
from raylab.report.palette import DARK, LIGHT
from raylab.report.run_record import RunRecord
from raylab.report.stages import blocked, memory, staleness

__all__ = ["report_figures", "report_page"]

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
"""Whatever the page might hold, a browser fetches nothing for it."""
_PARTS = (
    certificates,
    learning_curves,
    speed_up,
    throughput,
    blocked,
    timelines,
    staleness,
    replicas,
    memory,
)
"""In the order of the page; figures of one section stand together."""


def report_figures(runs: Sequence[RunRecord]) -> list[Figure]:
    """Return the figures for which the runs have numbers, in the order of the page."""
    return list(_figures(runs))


def _figures(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    for part in _PARTS:
        yield from part(runs)


def report_page(runs: Sequence[RunRecord]) -> str:
    """Return the page, of some megabytes since it holds plotly's script.

    Args:
        runs: at least one; their texts are foreign and escaped.
    """
    figures = report_figures(runs)
    sections = [
        (name, list(members)) for name, members in groupby(figures, lambda each: each.section)
    ]
    names = ["Results", *(name for name, _ in sections), "Configuration"]
    title = ", ".join(run.name for run in runs[:4]) + (" …" if len(runs) > 4 else "")
    return "".join(
        [
            "<!doctype html>\n",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>raylab report: {escape(title)}</title>",
            f"<style>{_tones()}{_asset('page.css')}</style></head>\n<body>",
            f'<header class="top"><h1>{_heading(runs)}</h1>',
            f'<nav aria-label="Sections">{"".join(map(_link, names))}</nav></header>',
            _legend(runs),
            f'<main><section aria-label="Runs" class="runs">{heads(runs)}</section>',
            _section("Results", f'<div class="card wide">{result_table(runs)}</div>'),
            *(_section(name, "".join(map(_card, members))) for name, members in sections),
            _section("Configuration", f'<div class="card wide">{config_table(runs)}</div>'),
            "</main>\n",
            f"<script>{get_plotlyjs()}</script>\n",
            f'<script type="application/json" id="content">{_content(figures)}</script>\n',
            f"<script>{_asset('page.js')}</script></body></html>\n",
        ]
    )


def _heading(runs: Sequence[RunRecord]) -> str:
    return escape(runs[0].name) if len(runs) == 1 else f"{len(runs)} runs"


def _legend(runs: Sequence[RunRecord]) -> str:
    if len(runs) == 1:
        return ""
    chips = "".join(
        f'<button type="button" class="chip" data-toggle="{i}" aria-pressed="true">'
        f"{run_mark(i)}{escape(run.name)}</button>"
        for i, run in enumerate(runs)
    )
    return (
        '<div class="legend" role="group" aria-label="Runs that are shown: click to hide or show">'
        f"{chips}</div>"
    )


def _link(name: str) -> str:
    return f'<a href="#{name.lower()}">{name}</a>'


def _section(name: str, content: str) -> str:
    anchor = name.lower()
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{name}</h2><div class="grid">{content}</div></section>\n'
    )


def _card(figure: Figure) -> str:
    run = "" if figure.run is None else f' data-run="{figure.run}"'
    buttons = "".join(
        f'<button type="button" data-zoom="{i}">{escape(label)}</button>'
        for i, (label, _, _) in enumerate(figure.windows)
    )
    zoom = f'<div class="zoom" role="group" aria-label="Zoom">{buttons}</div>' if buttons else ""
    return (
        f'<figure class="card{" wide" if figure.wide else ""}"{run}>'
        f"<figcaption><h3>{escape(figure.title)}</h3><p>{escape(figure.note)}</p></figcaption>"
        f'{zoom}<div class="plot" id="plot-{figure.name}" role="img" '
        f'aria-label="{escape(figure.title)}"></div></figure>'
    )


def _content(figures: Sequence[Figure]) -> str:
    plots = ",".join(
        f'{{"name":{json.dumps(each.name)},"windows":{json.dumps(list(each.windows))},'
        f'"plot":{plotly.io.to_json(each.plot, validate=False)}}}'
        for each in figures
    )
    tones = json.dumps({"light": LIGHT, "dark": DARK})
    # Inside <script>, and yet JSON: no text can end the element or begin a comment.
    return f'{{"tones":{tones},"figures":[{plots}]}}'.replace("<", "\\u003c")


def _tones() -> str:
    light, dark = (f":root{{{_variables(tones)}}}" for tones in (LIGHT, DARK))
    return f"{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _variables(tones: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in tones.items())


def _asset(name: str) -> str:
    file: Any = importlib.resources.files("raylab.report") / "assets" / name
    text: str = file.read_text(encoding="utf-8")
    return text
