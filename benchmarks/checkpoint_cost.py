"""Claim: a checkpoint a minute costs below 5 % of the throughput.

    python -m benchmarks.checkpoint_cost --model resnet56

One run, a row every few batches and a checkpoint in every fourth row: the median of the rows with
one against the median of their neighbours without, so that a machine that drifts does not matter.
The stages write to this machine's disk, beside the computation, and the processor's share of that
is in the rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

from raylab.config import pipeline_config
from raylab.drivers.pipeline.command import run_pipeline

ROWS_PER_CHECKPOINT = 4


def measure(options: argparse.Namespace) -> tuple[list[float], int]:
    """Return the seconds of every row, and the bytes of a checkpoint."""
    batches = options.checkpoints * ROWS_PER_CHECKPOINT * options.batches
    keys: dict[str, Any] = {
        "method": options.method,
        "model": options.model,
        "data": f"random:n={batches * options.batch_size},shape=3x32x32,classes=10",
        "batch_size": options.batch_size,
        "stages": options.stages,
        "epochs": 1,
        "report_every": options.batches,
        "checkpoint_minutes": 0.0,
        "checkpoint_every": ROWS_PER_CHECKPOINT * options.batches,
        "timeline": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        result = run_pipeline(pipeline_config({**keys, "storage": folder}), progress=False)
        steps = sorted((result.path / "checkpoints").glob("step-*"))
        size = sum(file.stat().st_size for file in steps[-1].iterdir())
    seconds = [stages[-1] for stages in result.table.column("stage_trained_s").to_pylist()]
    return seconds, size


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--method", default="adl")
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=8, help="of a row")
    parser.add_argument("--checkpoints", type=int, default=10)
    options = parser.parse_args()
    seconds, size = measure(options)
    # The batches of a checkpoint's step are behind it: its cost is in the row that follows. The
    # first group of rows has the start of the processes in it.
    groups = [
        seconds[i : i + ROWS_PER_CHECKPOINT]
        for i in range(ROWS_PER_CHECKPOINT, len(seconds), ROWS_PER_CHECKPOINT)
    ]
    groups = [group for group in groups if len(group) == ROWS_PER_CHECKPOINT]
    costs = [first - statistics.median(others) for first, *others in groups]
    cost = statistics.median(costs)
    error = statistics.stdev(costs) / len(costs) ** 0.5
    print(f"{options.method} {options.model} K={options.stages} batch {options.batch_size}:")
    print(f"a checkpoint of {size / 2**20:.1f} MiB costs {1000 * cost:.0f} ± {1000 * error:.0f} ms")
    print(f"({', '.join(f'{1000 * each:.0f}' for each in costs)}),")
    print(f"one a minute {100 * cost / 60:.2f} % of the throughput")


if __name__ == "__main__":
    main()
