"""One HTML page that needs nothing but itself: no network, no file beside it."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.io
from plotly.offline import get_plotlyjs

from raylab.report.figure import Figure
from raylab.report.palette import DARK, LIGHT

__all__ = ["document", "figure_sections"]

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
"""Whatever the page might hold, a browser fetches nothing for it."""


def document(
    title: str,
    heading: str,
    content: str,
    sections: Mapping[str, str],
    figures: Sequence[Figure],
    *,
    legend: str = "",
) -> str:
    """Return the page, of some megabytes since it holds plotly's script.

    Args:
        title: of the window, foreign text.
        heading: of the page, foreign text.
        content: HTML above the sections.
        sections: HTML of each, by name, in order.
        figures: that the sections have places for.
        legend: HTML that stays in sight.
    """
    return "".join(
        [
            "<!doctype html>\n",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>raylab report: {escape(title)}</title>",
            f"<style>{_tones()}{_asset('page.css')}</style></head>\n<body>",
            f'<header class="top"><h1>{escape(heading)}</h1>',
            f'<nav aria-label="Sections">{"".join(map(_link, sections))}</nav></header>',
            f"{legend}<main>{content}",
            *(_section(name, inside) for name, inside in sections.items()),
            "</main>\n",
            f"<script>{get_plotlyjs()}</script>\n",
            f'<script type="application/json" id="content">{_content(figures)}</script>\n',
            f"<script>{_asset('page.js')}</script></body></html>\n",
        ]
    )


def figure_sections(figures: Sequence[Figure]) -> dict[str, str]:
    """Return the HTML of the figures' sections, by name, in the order of their first figures."""
    sections: dict[str, str] = {}
    for figure in figures:
        sections[figure.section] = sections.get(figure.section, "") + _card(figure)
    return sections


def _section(name: str, content: str) -> str:
    anchor = name.lower()
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{name}</h2><div class="grid">{content}</div></section>\n'
    )


def _link(name: str) -> str:
    return f'<a href="#{name.lower()}">{name}</a>'


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
