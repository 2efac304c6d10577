"""How near a solver's weights are to the optimum: gap and gradient norm by epoch and by time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from raylab.report.figure import LEGEND_ABOVE, Figure, axis, plot, safe
from raylab.report.palette import LIGHT, run_tone
from raylab.report.run_record import RunRecord, number
from raylab.report.series import abscissas, lines

__all__ = ["certificates", "level_of_all", "speed_up", "time_to"]

_CERTIFICATES = {
    "duality_gap": (
        "Duality gap",
        "P(w) − D(α): the primal value is at most so far above the optimum.",
    ),
    "gradient_norm": ("Gradient norm", "‖∇P(w)‖: zero at a stationary point."),
    "relation": (
        "Primal-dual relation",
        "‖w − Σα/(λn)‖ with the messages in flight: rounding, if no message is lost or doubled.",
    ),
}
"""Column: (title, what it says)."""


def certificates(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield each certificate that the runs have, by epoch and by time, on logarithmic axes."""
    for column, (title, note) in _CERTIFICATES.items():
        for by, label, place, unit in abscissas(runs):
            traces = lines(runs, column, place, form=".2e", unit=unit, positive=True)
            if traces:
                yield Figure(
                    name=f"{column.replace('_', '-')}-by-{by}",
                    section="Certificates",
                    title=f"{title} by {by}",
                    note=note,
                    plot=plot(
                        traces,
                        axis(label, rangemode="tozero", tickformat=","),
                        axis(f"{title.lower()}, logarithmic", type="log", exponentformat="power"),
                    ),
                )


def speed_up(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield the time to the same certificate against workers, over the fewest of each method."""
    column = _column(runs)
    families: dict[str, dict[int, tuple[int, RunRecord]]] = {}
    for i, run in enumerate(runs):
        workers = run.config.get("workers")
        if isinstance(workers, int) and run.last(column) is not None:
            families.setdefault(str(run.config.get("method")), {}).setdefault(workers, (i, run))
    families = {method: found for method, found in families.items() if len(found) > 1}
    if not families:
        return
    level = max(_least(run, column) for found in families.values() for _, run in found.values())
    traces: list[Any] = []
    most = 1.0
    for method, found in families.items():
        counts = sorted(found)
        times = [time_to(found[k][1], column, level) or 0.0 for k in counts]
        if not all(times):
            continue
        gains = [counts[0] * times[0] / each for each in times]
        most = max(most, *counts)
        index = found[counts[0]][0]
        traces.append(
            go.Scatter(
                x=counts,
                y=gains,
                name=safe(method),
                mode="lines+markers",
                marker={"color": LIGHT[run_tone(index)], "size": 7},
                line={"color": LIGHT[run_tone(index)], "width": 2},
                hovertemplate=f"<b>{safe(method)}</b>, %{{x}} workers<br>%{{y:.2f}}×"
                "<extra></extra>",
                meta={"tone": run_tone(index)},
            )
        )
    if not traces:
        return
    traces.append(
        go.Scatter(
            x=[0, most],
            y=[0, most],
            name="linear",
            mode="lines",
            line={"color": LIGHT["axis"], "dash": "dot", "width": 1.5},
            hoverinfo="skip",
            meta={"tone": "axis"},
        )
    )
    yield Figure(
        name="speed-up",
        section="Speed",
        title="Speed-up against workers",
        note=f"Time to a {column.replace('_', ' ')} of {level:.1e}, which all runs reach. "
        "Dotted: linear.",
        plot=plot(
            traces,
            axis("workers", rangemode="tozero", tickformat=",d"),
            axis("speed-up", rangemode="tozero", tickformat=","),
            **LEGEND_ABOVE,
        ),
    )


def level_of_all(runs: Sequence[RunRecord]) -> tuple[str, float]:
    """Return the column of a certificate that all runs have, and the least that all reach."""
    column = _column(runs)
    return column, max(_least(run, column) for run in runs)


def time_to(run: RunRecord, column: str, level: float) -> float | None:
    """Return the seconds until a certificate first was at most `level`, None if it never was.

    Between two certificates the time is interpolated on the logarithm, so that runs whose
    certificates stand at different times can be compared.
    """
    before: tuple[float, float] | None = None
    for row in run.rows:
        value, time_s = number(row.get(column)), number(row.get("time_s"))
        if value is None or time_s is None:
            continue
        if value <= level:
            if before is None or not value > 0:
                return time_s
            return _between(before, (time_s, value), level)
        before = (time_s, value)
    return None


def _between(first: tuple[float, float], second: tuple[float, float], level: float) -> float:
    share = math.log(first[1] / level) / math.log(first[1] / second[1])
    return first[0] + share * (second[0] - first[0])


def _column(runs: Sequence[RunRecord]) -> str:
    gap = "duality_gap"
    whole = all(any(number(row.get(gap)) for row in run.rows) for run in runs)
    return gap if whole else "gradient_norm"


def _least(run: RunRecord, column: str) -> float:
    found = [v for row in run.rows if (v := number(row.get(column))) is not None and v > 0]
    return min(found, default=0.0)
