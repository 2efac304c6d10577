"""The page of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from raylab.report.averaging import replicas
from raylab.report.certificates import certificates, speed_up
from raylab.report.curves import learning_curves, throughput
from raylab.report.document import document, figure_sections
from raylab.report.figure import Figure
from raylab.report.gantt import timelines
from raylab.report.html_tables import config_table, heads, result_table, run_mark
from raylab.report.run_record import RunRecord
from raylab.report.stages import blocked, memory, staleness

__all__ = ["report_figures", "report_page"]

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
    """Return the page.

    Args:
        runs: at least one; their texts are foreign and escaped.
    """
    figures = report_figures(runs)
    return document(
        ", ".join(run.name for run in runs[:4]) + (" …" if len(runs) > 4 else ""),
        runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        f'<section aria-label="Runs" class="runs">{heads(runs)}</section>',
        {
            "Results": f'<div class="card wide">{result_table(runs)}</div>',
            **figure_sections(figures),
            "Configuration": f'<div class="card wide">{config_table(runs)}</div>',
        },
        figures,
        legend=_legend(runs),
    )


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
