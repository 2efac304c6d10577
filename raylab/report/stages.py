"""What the stages did: blocked time, staleness, memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from raylab.report.figure import LEGEND_ABOVE, Figure, axis, plot, safe, stage_bars
from raylab.report.palette import LIGHT, run_tone
from raylab.report.run_record import RunRecord, number

__all__ = ["blocked", "memory", "staleness"]

_MIB = 2.0**20
_KEPT = {
    "graphs": ("stage_graphs_peak", "activations"),
    "inputs": ("stage_inputs_peak", "versions"),
}
_BYTES = {
    "activations": ("stage_activation_bytes_peak", "activations"),
    "weight versions": ("stage_version_bytes_peak", "versions"),
    "mailboxes": ("stage_mailbox_bytes_peak", "mailboxes"),
}
"""Component: (column, tone)."""


def blocked(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield the share of its time that each stage waited for messages and credits."""
    shares = [_blocked_shares(run) for run in runs]
    if not any(shares):
        return
    yield Figure(
        name="blocked",
        section="Speed",
        title="Time that each stage waited for others",
        note="Waiting for messages and credits, as a share of the run.",
        plot=plot(
            stage_bars(runs, shares, "%{y:.1%} of the time"),
            axis(""),
            axis("share of the time (%)", tickformat=".0%", rangemode="tozero"),
            barmode="group",
            bargap=_gap(runs),
        ),
    )


def staleness(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield mean and maximum per stage, and the histogram over gradients."""
    means = [_weighted_means(run) for run in runs]
    if any(means):
        traces: list[Any] = stage_bars(runs, means, "%{y:.2f} updates on average")
        for i, run in enumerate(runs):
            peaks = _maxima(run, "stage_staleness_max")
            if peaks:
                traces.append(
                    go.Bar(
                        x=[f"stage {k}" for k in range(len(peaks))],
                        y=peaks,
                        name=f"{safe(run.name)}, largest",
                        marker={
                            "color": "rgba(0,0,0,0)",
                            "line": {"color": LIGHT[run_tone(i)], "width": 1.5},
                        },
                        offsetgroup=f"run{i}",
                        hovertemplate=f"<b>{safe(run.name)}</b>, %{{x}}<br>at most %{{y}} updates"
                        "<extra></extra>",
                        meta={"run": i, "tone": run_tone(i), "outline": True},
                    )
                )
        for trace in traces:
            trace.offsetgroup = f"run{trace.meta['run']}"
        yield Figure(
            name="staleness",
            section="Stages",
            title="Staleness of gradients at each stage",
            note="Updates between a gradient's forward and its use. Filled: mean. Outline: most.",
            plot=plot(
                traces,
                axis(""),
                axis("staleness (updates)", rangemode="tozero", tickformat=","),
                barmode="group",
                bargap=_gap(runs),
            ),
        )
    counted = [_histogram(run) for run in runs]
    if any(counted):
        staged = any(run.by_stage("stage_staleness_mean") for run in runs)
        yield Figure(
            name="staleness-histogram",
            section="Stages" if staged else "Workers",
            title="How many gradients were how stale",
            note="Over all stages and batches." if staged else "Over all messages.",
            plot=plot(
                [
                    go.Bar(
                        x=list(range(len(counts))),
                        y=[count / max(1, sum(counts)) for count in counts],
                        customdata=counts,
                        name=safe(run.name),
                        marker={"color": LIGHT[run_tone(i)]},
                        hovertemplate=f"<b>{safe(run.name)}</b>, staleness %{{x}}<br>"
                        "%{y:.1%}, %{customdata:,} gradients<extra></extra>",
                        meta={"run": i, "tone": run_tone(i)},
                    )
                    for i, (run, counts) in enumerate(zip(runs, counted, strict=True))
                    if counts
                ],
                axis("staleness (updates)", tickformat=",d", dtick=_whole_steps(counted)),
                axis("share of the gradients (%)", tickformat=".0%", rangemode="tozero"),
                barmode="group",
                bargap=_gap(runs),
            ),
        )


def memory(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """Yield peaks of bytes per stage, and of the graphs and inputs that are kept."""
    if traces := _parts(runs, _BYTES, 1 / _MIB, "%{y:,.1f} MiB"):
        yield Figure(
            name="memory",
            section="Stages",
            title="Memory of each stage at its peak",
            note="Beside weights and optimiser.",
            plot=plot(
                traces,
                axis(""),
                axis("memory (MiB)", rangemode="tozero", tickformat=","),
                barmode="stack",
                bargap=_gap(runs),
                **LEGEND_ABOVE,
            ),
        )
    if traces := _parts(runs, _KEPT, 1.0, "%{y:,}"):
        yield Figure(
            name="kept",
            section="Stages",
            title="Graphs and inputs that each stage keeps at most",
            note="Of batches or micro-batches whose gradient has not come yet.",
            plot=plot(
                traces,
                axis(""),
                axis("kept at once (count)", rangemode="tozero", tickformat=",d"),
                barmode="group",
                bargap=_gap(runs),
                **LEGEND_ABOVE,
            ),
        )


def _gap(runs: Sequence[RunRecord]) -> float:
    """Return the gap between stages, so that a bar of a few is no wall."""
    bars = len(runs) * max(run.stages for run in runs)
    return 0.3 if bars > 4 else 0.6


def _parts(
    runs: Sequence[RunRecord], parts: dict[str, tuple[str, str]], factor: float, hover: str
) -> list[go.Bar]:
    """Return bars per stage and run; one category axis, or stages with runs below them."""
    traces = []
    shown: set[str] = set()
    for i, run in enumerate(runs):
        for part, (column, tone) in parts.items():
            values = [value * factor for value in _maxima(run, column)]
            if not any(values):
                continue
            stages = [f"stage {k}" for k in range(len(values))]
            traces.append(
                go.Bar(
                    x=stages if len(runs) == 1 else [stages, [safe(run.name)] * len(values)],
                    y=values,
                    name=part,
                    legendgroup=part,
                    showlegend=part not in shown,
                    marker={"color": LIGHT[tone]},
                    hovertemplate=f"<b>{safe(run.name)}</b>, %{{x}}<br>{part}: {hover}"
                    "<extra></extra>",
                    meta={"run": i, "tone": tone},
                )
            )
            shown.add(part)
    return traces


def _blocked_shares(run: RunRecord) -> list[float]:
    rows = run.by_stage("stage_blocked_s")
    total = number(run.rows[-1].get("time_s"))
    if not rows or not total:
        return []
    return [min(1.0, sum(each) / total) for each in zip(*rows, strict=True)]


def _weighted_means(run: RunRecord) -> list[float]:
    means = run.by_stage("stage_staleness_mean")
    weights = run.by_stage("stage_gradients") or [[1.0] * len(row) for row in means]
    return [
        sum(m * w for m, w in zip(mean, weight, strict=True)) / max(1, sum(weight))
        for mean, weight in zip(zip(*means, strict=True), zip(*weights, strict=True), strict=True)
    ]


def _maxima(run: RunRecord, column: str) -> list[float]:
    return [max(each) for each in zip(*run.by_stage(column), strict=True)]


def _histogram(run: RunRecord) -> list[int]:
    total: list[int] = []
    for row in run.rows:
        counts = row.get("staleness_counts") or []
        total += [0] * (len(counts) - len(total))
        for late, count in enumerate(counts):
            total[late] += count
    return total


def _whole_steps(counted: Sequence[Sequence[int]]) -> int:
    return max(1, max(map(len, counted)) // 16)
