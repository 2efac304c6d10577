"""Claim: what `raylab plan` predicts from probes of stages and messages is within 10 % of the
throughput that is then measured, for every method.

    python -m benchmarks.plan_prediction --stages 2 4 8 --repeats 3

Modelled compute as in pipeline_modelled_compute (20 ms a stage and batch, 512 KB messages). In each
repeat the actors are probed, the methods predicted, then run; a row has the medians over the
repeats, and the range of measured over predicted throughput.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from actors.pipeline.supervisor import Supervisor
from actors.pipeline.wiring import links
from benchmarks.modelled import BATCH, WIDTH
from benchmarks.pipeline_modelled_compute import (
    BACKWARD_S,
    CASES,
    FORWARD_S,
    Case,
    load,
    measure,
)
from benchmarks.session import ray_session
from raylab.drivers.pipeline.measure import pipeline_costs
from raylab.drivers.pipeline.predict import predicted
from raylab.drivers.pipeline.programs import programs
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.planner import PipelineCosts


def settings_of(case: Case, stages: int) -> PipelineSettings:
    """Return the settings of a case."""
    cuts = tuple(range(1, stages))
    return PipelineSettings(method=case.method, stages=cuts or 1, **case.options)


def probe(supervisor: Supervisor, times: list[tuple[float, float]]) -> PipelineCosts:
    """Probe stages and links as a run would."""
    settings = settings_of(CASES[-1], len(times))
    load(supervisor, times, settings)
    supervisor.wire(links(programs(settings, settings.link_delays(), 0)), "zmq")
    return pipeline_costs(supervisor, [(torch.zeros(BATCH, WIDTH),)] * len(times))


def table(stages: int, batches: int, repeats: int) -> list[dict[str, Any]]:
    """Predict and measure every method; return a row a method."""
    times = [(FORWARD_S, BACKWARD_S)] * stages
    pairs: dict[str, list[tuple[float, float]]] = {case.label: [] for case in CASES}
    handling = []
    with Supervisor([{"CPU": 0.1}] * stages, threads=1, seed=0, wait_s=60) as supervisor:
        for _ in range(repeats):
            costs = probe(supervisor, times)
            full = [link.full for link in costs.links]
            handling.append(
                [
                    1000 * statistics.median(getattr(m, name) for m in full)
                    for name in ("latency_s", "put_s", "take_s", "cpu_s")
                ]
            )
            for case in CASES:
                plan = predicted(settings_of(case, stages), costs)
                run = case
                if plan.delays is not None and case.options.get("delay") == "auto":
                    run = replace(case, options={"delay": tuple(plan.delays)})
                count = max(24, batches // stages) if case.method == "bp" else batches
                seen = measure(run, times, count, supervisor)
                pairs[case.label].append((plan.period_s, seen.period_s))
    rows = []
    for label, found in pairs.items():
        ratios = [expected / seen for expected, seen in found]
        rows.append(
            {
                "K": stages,
                "method": label,
                "predicted_ms": 1000 * statistics.median(expected for expected, _ in found),
                "measured_ms": 1000 * statistics.median(seen for _, seen in found),
                "measured_over_predicted": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
            }
        )
    medians = [statistics.median(each) for each in zip(*handling, strict=True)]
    print("message ms: latency {:.2f}, put {:.2f}, take {:.2f}, processor {:.2f}".format(*medians))
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a Markdown table; throughput is the inverse of a period."""
    print("| K | method | predicted ms | measured ms | measured / predicted samples/s (range) |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        low, high = row["range"]
        print(
            f"| {row['K']} | {row['method']} | {row['predicted_ms']:.2f} "
            f"| {row['measured_ms']:.2f} | {row['measured_over_predicted']:.3f} "
            f"({low:.3f}–{high:.3f}) |",
            flush=True,
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--batches", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows = []
    with ray_session(4):
        for stages in options.stages:
            rows += table(stages, options.batches, options.repeats)
            show(rows[-len(CASES) :])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
