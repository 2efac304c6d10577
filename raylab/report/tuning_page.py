"""The page of a search."""

from __future__ import annotations

from collections.abc import Iterator

from raylab.report.document import document, figure_sections
from raylab.report.figure import Figure
from raylab.report.tuning_keys import importances, slices
from raylab.report.tuning_parallel import parallel
from raylab.report.tuning_record import TuningRecord
from raylab.report.tuning_search import front, history
from raylab.report.tuning_tables import (
    best_card,
    config_card,
    head,
    importance_card,
    trial_table,
)
from raylab.report.tuning_trials import curves, seconds

__all__ = ["tuning_figures", "tuning_page"]

_PARTS = (history, front, parallel, importances, slices, curves, seconds)
"""In the order of the page."""


def tuning_figures(record: TuningRecord) -> list[Figure]:
    """Return the figures for which the search has numbers, in the order of the page."""
    return list(_figures(record))


def _figures(record: TuningRecord) -> Iterator[Figure]:
    for part in _PARTS:
        yield from part(record)


def tuning_page(record: TuningRecord) -> str:
    """Return the page.

    Args:
        record: of the search; its texts are foreign and escaped.
    """
    figures = tuning_figures(record)
    sections = figure_sections(figures)
    if record.keys:
        sections["Keys"] = importance_card(record) + sections.get("Keys", "")
    return document(
        record.name,
        record.name,
        f'<section aria-label="Search" class="runs">{head(record)}</section>',
        {
            "Best": best_card(record),
            **sections,
            "Trials": sections.get("Trials", "") + trial_table(record),
            "Configuration": config_card(record),
        },
        figures,
    )
