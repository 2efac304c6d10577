"""What averaging replicas did: how long they waited for the network, how far they are apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raylab.report.figure import Figure, axis, plot
from raylab.report.run_record import RunRecord
from raylab.report.series import abscissas, lines

__all__ = ["replicas"]


def replicas(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield the share of the time that workers waited, and the distance of replicas."""
    _, label, place, unit = abscissas(runs)[0]
    for column, title, note, form, y in (
        (
            "blocked_share",
            "Time that workers waited for the network",
            "As a share of the time of training, a mean over the workers.",
            ".1%",
            axis("share of the time (%)", tickformat=".0%", rangemode="tozero"),
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
