"""Claim: a checkpoint a minute costs below 5 % of the throughput.

    python -m benchmarks.checkpoint_cost --model resnet56 --repeats 3

The same run with no checkpoint and with one every few batches, interleaved; the difference in time
over the number of checkpoints is what one costs, and over 60 s what one a minute costs. The stages
write to this machine's disk, beside the computation, so that the processor's share is counted too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

from raylab.config import pipeline_config
from raylab.drivers.pipeline_command import run_pipeline


def measure(every: int, options: argparse.Namespace) -> tuple[float, int]:
    """Return seconds of training and bytes of a checkpoint."""
    samples = options.batches * options.batch_size
    keys: dict[str, Any] = {
        "method": options.method,
        "model": options.model,
        "data": f"random:n={samples},shape=3x32x32,classes=10",
        "batch_size": options.batch_size,
        "stages": options.stages,
        "epochs": 2,
        "checkpoint_minutes": 0.0,
        "checkpoint_every": every,
        "timeline": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        result = run_pipeline(pipeline_config({**keys, "storage": folder}), progress=False)
        steps = sorted((result.path / "checkpoints").glob("step-*"))
        size = sum(file.stat().st_size for file in steps[-1].iterdir()) if steps else 0
    # The first epoch has the start of the processes in it.
    last = result.table.slice(1).column("stage_trained_s").to_pylist()[0][-1]
    return float(last), size


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--method", default="adl")
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=60, help="of each epoch")
    parser.add_argument("--every", type=int, default=5, help="batches between two checkpoints")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    costs, sizes = [], []
    for _ in range(options.repeats):
        without, _ = measure(0, options)
        with_them, size = measure(options.every, options)
        costs.append((with_them - without) / (options.batches / options.every))
        sizes.append(size)
        print(f"{without:.2f} s without, {with_them:.2f} s with", flush=True)
    cost = statistics.median(costs)
    print(f"{options.method} {options.model} K={options.stages} batch {options.batch_size}:")
    print(f"a checkpoint of {statistics.median(sizes) / 2**20:.1f} MiB costs {1000 * cost:.0f} ms")
    print(f"({', '.join(f'{1000 * each:.0f}' for each in costs)}),")
    print(f"one a minute {100 * cost / 60:.2f} % of the throughput")


if __name__ == "__main__":
    main()
