"""Claim: with 20 ms of modelled compute per stage and batch and 512 KB messages, delayed gradients
keep K stages busy; the table sets every method beside the ideal, the period formula and the
paper's own speed-ups (ADL, Table III).

    python -m benchmarks.pipeline_modelled_compute --stages 2 4 8 10 16 --repeats 3

Stages are the product's actors, kept warm over the methods, which are interleaved. Every figure is
the median over the repeats; a period is the time between two batches of a full pipeline (the first
report, which has the fill, is left out).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actors.pipeline.stage_actor import Feed
from actors.pipeline.supervisor import Supervisor
from actors.pipeline.wiring import links
from benchmarks.modelled import BATCH, WIDTH, NapBatches, NapRule
from benchmarks.session import ray_session
from raylab.drivers.pipeline.programs import programs
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.planner import choose_link_delays, predicted_period_s
from raylab.records import RowMerger

FORWARD_S, BACKWARD_S = 0.007, 0.013
PAPER = {
    ("adl", 4): 3.32,
    ("ddg", 4): 1.68,
    ("fr", 4): 1.45,
    ("gpipe", 4): 2.20,
    ("adl", 8): 3.95,
    ("gpipe", 8): 3.00,
}
"""Speed-ups over BP of ResNet-101 on 4 and 8 GPUs, ADL Table III."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a method under a label."""

    label: str
    method: str
    options: dict[str, Any]


CASES = [
    Case(label="bp", method="bp", options={}),
    Case(label="gpipe", method="gpipe", options={"micro_batches": 8}),
    Case(label="1f1b", method="1f1b", options={"micro_batches": 8}),
    Case(label="ddg", method="ddg", options={}),
    Case(label="fr", method="fr", options={}),
    Case(label="auto", method="ddg", options={"delay": "auto"}),
    Case(label="adl", method="adl", options={}),
]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run: seconds between batches, mean staleness, delays of the links, time of a message."""

    period_s: float
    staleness: float
    delays: list[int]
    messages_s: list[float]


def measure(
    case: Case, times: list[tuple[float, float]], batches: int, supervisor: Supervisor
) -> Measured:
    """Run one method once, on stage actors that are warm."""
    chunk = max(10, batches // 4)
    settings = PipelineSettings(
        method=case.method, stages=tuple(range(1, len(times))) or 1, **case.options
    )
    link_delays: Sequence[int | None] = settings.link_delays()
    window = settings.parts
    plan = programs(settings, link_delays, chunk)
    measured: dict[str, Any] = {}
    load(supervisor, times, settings)
    if settings.delay == "auto":
        supervisor.wire(links(plan, window), "zmq")
        features = (torch.zeros(BATCH, WIDTH),)
        seen = supervisor.stage_times([features] * len(times), 15)
        messages = supervisor.message_times([features] * (len(times) - 1), 15)
        measured["messages"] = [each.latency_s for each in messages]
        link_delays = choose_link_delays(
            [(each.forward_s, each.backward_s) for each in seen], measured["messages"]
        )
        plan = programs(settings, link_delays, chunk)
        load(supervisor, times, settings)
    supervisor.wire(links(plan, window), "zmq")
    merger = RowMerger(len(times))
    rows: list[dict[str, Any]] = []
    supervisor.run(
        plan,
        Feed(
            train=NapBatches(batches), test=None, epochs=1, parts=settings.parts, evaluate_every=1
        ),
        lambda look: rows.extend(merger.add(look.rows)),
    )
    late = sum(row["staleness_mean"] * sum(row["stage_gradients"]) for row in rows)
    steady = [row for row in rows if row["epoch"] is None][1:]
    return Measured(
        period_s=statistics.median(row["stage_trained_s"][-1] / chunk for row in steady),
        staleness=late / sum(sum(row["stage_gradients"]) for row in rows),
        delays=[d for d in link_delays if d is not None] if settings.rule.delayed else [],
        messages_s=measured.get("messages", []),
    )


def load(
    supervisor: Supervisor, times: list[tuple[float, float]], settings: PipelineSettings
) -> None:
    """Make every stage nap for its times."""
    last = len(times) - 1
    supervisor.load(
        [
            functools.partial(NapRule, *each, last=k == last, replays=settings.rule.replay)
            for k, each in enumerate(times)
        ]
    )


def formula(
    case: Case, times: list[tuple[float, float]], seen: Measured, message_s: float
) -> float:
    """Return the period that the formula of delays allows, in seconds; for BP the locked chain."""
    between = len(times) - 1
    delays = seen.delays or [0] * between
    if case.method in ("gpipe", "1f1b"):
        parts = case.options["micro_batches"]
        return (len(times) - 1 + parts) / parts * sum(times[0])
    return predicted_period_s(times, [message_s] * between, delays, replay=case.method == "fr")


def table(times: list[tuple[float, float]], batches: int, repeats: int) -> list[dict[str, Any]]:
    """Measure every method with these stage times; return a row a method."""
    stages = len(times)
    found: dict[str, list[Measured]] = {case.label: [] for case in CASES}
    with Supervisor([{"CPU": 0.1}] * stages, threads=1, seed=0, wait_s=60) as supervisor:
        for _ in range(repeats):
            for case in CASES:
                # A locked batch takes K periods: fewer of them say as much.
                count = max(24, batches // stages) if case.method == "bp" else batches
                found[case.label].append(measure(case, times, count, supervisor))
    message_s = statistics.median(each for run in found["auto"] for each in run.messages_s)
    bp = statistics.median(run.period_s for run in found["bp"])
    ideal = max(f + b for f, b in times)
    rows = []
    for case in CASES:
        runs = found[case.label]
        periods = [run.period_s for run in runs]
        period = statistics.median(periods)
        allowed = formula(case, times, runs[0], message_s)
        rows.append(
            {
                "K": stages,
                "method": case.label,
                "period_ms": 1000 * period,
                "spread_ms": 1000 * (max(periods) - min(periods)),
                "of_ideal": ideal / period,
                "of_formula": allowed / period,
                "speed_up": bp / period,
                "over_ideal_bp": sum(f + b for f, b in times) / period,
                "paper": PAPER.get((case.label, stages)),
                "staleness": statistics.median(run.staleness for run in runs),
                "delays": runs[0].delays,
                "message_ms": 1000 * message_s,
            }
        )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    print(
        "| K | method | period ms | spread | of ideal | of formula | over BP | paper | staleness "
        "| delays |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        paper = "" if row["paper"] is None else f"{row['paper']:.2f}×"
        delays = " ".join(str(d) for d in row["delays"])
        print(
            f"| {row['K']} | {row['method']} | {row['period_ms']:.2f} | {row['spread_ms']:.2f} "
            f"| {row['of_ideal']:.3f} | {row['of_formula']:.3f} | {row['speed_up']:.2f}× | {paper} "
            f"| {row['staleness']:.2f} | {delays} |",
            flush=True,
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8, 10, 16])
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--uneven", action="store_true", help="stages that do not take equally long"
    )
    parser.add_argument("--only", nargs="+", help="of the methods")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    if options.only:
        CASES[:] = [c for c in CASES if c.label in {*options.only, "bp", "auto"}]
    rows = []
    with ray_session(4):
        for stages in options.stages:
            share = [1.0] * stages
            if options.uneven:
                # As a ResNet is cut: one stage is the slowest, the others fall short of it.
                share = [1.0, *(0.55 + 0.4 * (k % 3) / 2 for k in range(1, stages))]
            times = [(FORWARD_S * each, BACKWARD_S * each) for each in share]
            rows += table(times, options.batches, options.repeats)
            show(rows[-len(CASES) :])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
