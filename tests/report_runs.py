"""Runs made by hand, with everything that a report can show, for tests without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylab.records import RunFolder, Storage
from raylab.report import RunRecord

__all__ = ["made_up_run", "write_run"]


def made_up_run(
    name: str = "first", *, stages: int = 2, epochs: int = 4, **config: Any
) -> RunRecord:
    """Return a run whose figures follow from its arguments alone."""
    per_stage = range(stages)
    rows = [
        {
            "epoch": epoch,
            "step": 20 * epoch,
            "time_s": 2.5 * epoch,
            "loss": 2.0 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "test_loss": 2.2 / epoch,
            "test_accuracy": 1 - 0.6 / epoch,
            "samples": 1280,
            "samples_per_s": 500.0 + epoch,
            "staleness_mean": 0.5,
            "stage_blocked_s": [0.5 + 0.1 * k for k in per_stage],
            "stage_trained_s": [2.4] * stages,
            "stage_staleness_mean": [float(stages - 1 - k) for k in per_stage],
            "stage_staleness_max": [stages - k for k in per_stage],
            "stage_gradients": [20] * stages,
            "stage_graphs_peak": [stages - k for k in per_stage],
            "stage_inputs_peak": [1] * stages,
            "stage_activation_bytes_peak": [(3 + k) << 20 for k in per_stage],
            "stage_version_bytes_peak": [1 << 20] * stages,
            "stage_mailbox_bytes_peak": [1 << 19] * stages,
            "staleness_counts": [20, 15, 5],
        }
        for epoch in range(1, epochs + 1)
    ]
    timeline = [
        {"stage": k, "kind": kind, "batch": n, "start_s": 1e9 + at, "end_s": 1e9 + at + lasts}
        for k in per_stage
        for n in range(20)
        for kind, at, lasts in (
            ("waiting", 0.040 * n + 0.005 * k, 0.004),
            ("forward", 0.040 * n + 0.005 * k + 0.005, 0.010),
            ("backward", 0.040 * n + 0.005 * k + 0.016, 0.018),
            ("update", 0.040 * n + 0.005 * k + 0.035, 0.001),
        )
    ]
    timeline.append(
        {"stage": 0, "kind": "evaluate", "batch": 19, "start_s": 1e9 + 1, "end_s": 1e9 + 1.1}
    )
    return RunRecord(
        name=name,
        config={
            "method": "adl",
            "model": "mlp",
            "data": "digits",
            "batch_size": 64,
            "accumulate": 2,
            "delay": [2] * (stages - 1),
            "seed": 3,
            "lr": 0.05,
            "measured": {"stage_forward_s": [0.04] * stages, "stage_backward_s": [0.06] * stages},
            "name": name,
            **config,
        },
        rows=rows,
        result={
            "versions": {"raylab-train": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"},
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "machine": "Linux x86_64, 2 cores",
            "samples_per_s": 502.5,
            "staleness_mean": 0.5,
        },
        timeline=timeline,
    )


def write_run(storage: Path, run: RunRecord) -> Path:
    """Write a run's files; return its folder."""
    folder = RunFolder(Storage.at(storage), run.name)
    folder.write_config(run.config)
    folder.write_metrics(run.rows)
    folder.write_timeline(run.timeline)
    folder.write_result(run.result)
    return folder.path
