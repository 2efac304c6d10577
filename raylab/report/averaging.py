"""What averaging replicas did: how long they waited for the network, how far they are apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from raylab.report.figure import Figure, axis, plot, safe
from raylab.report.palette import LIGHT, run_tone
from raylab.report.run_record import RunRecord, number
from raylab.report.series import Place, abscissas, lines

__all__ = ["replicas", "without_waiting"]

_SHARE = ".3~%"
"""Of a share that may be far below 1%."""
_NOTICED = 0.01
"""Share of the time that workers wait, below which it is not drawn what it costs."""


def replicas(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield how long workers waited, all and each, and the distance of replicas."""
    _, label, place, unit = abscissas(runs)[0]
    for column, title, note, form, y in (
        (
            "blocked_share",
            "Time that workers waited for the network",
            "As a share of the time of training, a mean over the workers.",
            _SHARE,
            axis("share of the time (%)", tickformat=_SHARE, rangemode="tozero"),
        ),
        (
            "consensus_distance",
            "Distance of the replicas from their mean",
            "Root mean square over the workers, at the ends of epochs.",
            ".3g",
            axis("distance", rangemode="tozero"),
        ),
    ):
        traces = lines(runs, column, place, form=form, unit=unit)
        if traces:
            yield Figure(
                name=column.replace("_", "-"),
                section="Workers",
                title=title,
                note=note,
                plot=plot(traces, axis(label, rangemode="tozero", tickformat=","), y),
            )
    shares = [_worker_shares(run) for run in runs]
    if any(shares):
        yield Figure(
            name="worker-blocked",
            section="Workers",
            title="Time that each worker waited for the network",
            note="As a share of the time of training, in all.",
            plot=plot(
                [
                    go.Bar(
                        x=[f"worker {k}" for k in range(len(of_run))],
                        y=of_run,
                        name=safe(run.name),
                        marker={"color": LIGHT[run_tone(i)]},
                        hovertemplate=f"<b>{safe(run.name)}</b>, %{{x}}<br>%{{y:{_SHARE}}} of the "
                        "time<extra></extra>",
                        meta={"run": i, "tone": run_tone(i)},
                    )
                    for i, (run, of_run) in enumerate(zip(runs, shares, strict=True))
                    if of_run
                ],
                axis(""),
                axis("share of the time (%)", tickformat=_SHARE, rangemode="tozero"),
                barmode="group",
                bargap=0.5,
            ),
        )


def without_waiting(runs: Sequence[RunRecord], place: Place) -> list[go.Scatter]:
    """Return samples per second as they would be had no worker waited for the network.

    Args:
        runs: all of them; a line is drawn of those whose waiting is worth one.
        place: where a row stands, of `abscissas`.
    """
    traces = []
    for i, run in enumerate(runs):
        if not run.averages or (number(run.result.get("blocked_share")) or 0.0) < _NOTICED:
            continue
        points = [
            (place(run, row), row["samples"] / (row["trained_s"] - row["blocked_s"]))
            for row in run.rows
            if row.get("trained_s", 0.0) > row.get("blocked_s", 0.0)
        ]
        traces.append(
            go.Scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                name=f"{safe(run.name)}, without waiting",
                mode="lines",
                line={"color": LIGHT[run_tone(i)], "dash": "dash", "width": 2},
                hovertemplate=f"<b>{safe(run.name)}</b>, without waiting<br>%{{y:,.1f}} samples/s"
                "<extra></extra>",
                meta={"run": i, "tone": run_tone(i)},
            )
        )
    return traces


def _worker_shares(run: RunRecord) -> list[float]:
    """Return the share of its time that each worker waited, of the rows with as many workers as
    the last one has.
    """
    rows = [row for row in run.rows if row.get("worker_blocked_s") and "trained_s" in row]
    rows = [
        row for row in rows if len(row["worker_blocked_s"]) == len(rows[-1]["worker_blocked_s"])
    ]
    trained_s = sum(row["trained_s"] for row in rows)
    if not run.averages or trained_s <= 0:
        return []
    return [
        sum(each) / trained_s for each in zip(*(r["worker_blocked_s"] for r in rows), strict=True)
    ]
