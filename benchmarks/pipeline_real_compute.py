"""Claim: two stages of ResNet-20 on two cores train as fast under ADL as the same two stages do
side by side without a message, and faster than any synchronous pipeline of the same cut.

    python -m benchmarks.pipeline_real_compute --batch-sizes 64 128 --repeats 3

The two cores of a small machine may share their floating-point units, so the bound is measured in
the same run: the *ceiling* is the two stages computing at once, never waiting for each other. All
peers are interleaved; figures are medians over the repeats with their range. One thread a process
unless it says otherwise; random images, SGD with momentum and weight decay, the same seed.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ray.train import RunConfig
from torch import Tensor, nn

from benchmarks.peers.ceiling import measure_ceiling
from benchmarks.peers.ddp import measure_ddp
from benchmarks.peers.single_process import measure_single_process
from benchmarks.peers.torch_pipeline import measure_torch_pipeline
from benchmarks.peers.workload import Workload
from benchmarks.session import ray_session
from raylab import PipelineTrainer, models
from raylab.drivers.pipeline.network import Network
from raylab.planner import balanced_cuts, trace_blocks

SHAPE = (3, 32, 32)
MODEL = "resnet20"


def network() -> nn.Sequential:
    """Return the network, with the same weights every time."""
    torch.manual_seed(0)
    return models.build(MODEL)


@functools.cache
def cut() -> list[int]:
    """Return where the trainer cuts it for two stages."""
    chain = Network(network())
    x, y = torch.zeros(8, *SHAPE), torch.zeros(8, dtype=torch.long)
    traces = trace_blocks(chain.blocks, chain.names, [x], [y], nn.functional.cross_entropy)
    return balanced_cuts([trace.cost for trace in traces], 2)


def stages() -> list[nn.Module]:
    """Return the two stages, for the peers."""
    return list(Network(network()).stages(cut()))


class Images:
    """`count` batches of random images, made where they are read."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        x: Tensor = torch.randn(self.size, *SHAPE, generator=generator)
        y = torch.randint(10, (self.size,), generator=generator)
        return iter([(x, y)] * self.count)


def measure_raylab(method: str, size: int, batches: int, storage: Path, **options: Any) -> float:
    """Return samples per second of one run, its first chunk (fill) left out."""
    chunk = max(5, batches // 5)
    trainer = PipelineTrainer(
        network(),
        nn.CrossEntropyLoss(),
        method=method,
        stages=cut(),
        optimizer=functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
        resources_per_stage={"CPU": 1},
        run_config=RunConfig(storage_path=str(storage)),
        **options,
    )
    result = trainer.fit(Images(batches + chunk, size), report_every=chunk, progress=False)
    rows = [row for row in result.table.to_pylist() if row["epoch"] is None][1:]
    return chunk * size / statistics.median(row["stage_trained_s"][-1] for row in rows)


def measure_all(
    size: int, batches: int, repeats: int, micro_batches: Sequence[int]
) -> dict[str, list[float]]:
    """Return samples per second of every peer, one number a repeat."""
    work = Workload(stages=stages, input_shape=SHAPE, batch_size=size)
    found: dict[str, list[float]] = {}

    def note(name: str, samples_per_s: float) -> None:
        found.setdefault(name, []).append(samples_per_s)
        print(f"  batch {size:>4}  {name:<40} {samples_per_s:8.1f} samples/s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        ours: list[tuple[str, Callable[[], float]]] = [
            (
                f"raylab {label}",
                functools.partial(measure_raylab, method, size, batches, Path(folder), **options),
            )
            for label, method, options in (
                ("bp, locked stages", "bp", {}),
                ("ddg", "ddg", {}),
                ("adl", "adl", {}),
                ("fr", "fr", {}),
            )
        ]
        for _ in range(repeats):
            ceiling = measure_ceiling(work, batches=batches)
            best = max(ceiling.samples_per_s, ceiling.paced_samples_per_s)
            note("ceiling: both stages, no messages", best)
            note("ceiling: the stages one after another", size / ceiling.serial_s)
            for name, run in ours:
                note(name, run())
            for schedule in ("gpipe", "1f1b"):
                for micro in micro_batches:
                    sample = measure_torch_pipeline(
                        work, schedule=schedule, micro_batches=micro, batches=batches
                    )
                    note(f"torch {schedule}, {micro} micro-batches", sample.samples_per_s)
            note("DDP, 2 processes", measure_ddp(work, batches=batches).samples_per_s)
            for threads in (1, 2):
                sample = measure_single_process(work, threads=threads, batches=batches)
                note(f"one process, {threads} thread(s)", sample.samples_per_s)
    return found


def show(size: int, found: dict[str, list[float]]) -> None:
    """Print the figures and the ratios that the claim is about."""
    middle = {name: statistics.median(each) for name, each in found.items()}
    top = middle["ceiling: both stages, no messages"]
    print(f"\n| batch {size} | samples/s (range) | of the ceiling |\n| --- | --- | --- |")
    for name, each in found.items():
        print(
            f"| {name} | {middle[name]:.0f} ({min(each):.0f}–{max(each):.0f}) "
            f"| {middle[name] / top:.2f} |"
        )

    def ratio(over: Sequence[str]) -> str:
        # Pair by pair, because the machine drifts between repeats.
        pairs = [
            ours / max(theirs)
            for ours, *theirs in zip(
                found["raylab adl"], *(found[name] for name in over), strict=True
            )
        ]
        return f"{statistics.median(pairs):.2f} ({min(pairs):.2f}–{max(pairs):.2f})"

    torch_best = [name for name in found if name.startswith("torch")]
    print(f"\nADL over the ceiling: {ratio(['ceiling: both stages, no messages'])}")
    print(f"ADL over torch's best of GPipe and 1F1B: {ratio(torch_best)}")
    print(f"ADL over BP through the locked stages: {ratio(['raylab bp, locked stages'])}")
    print(
        "ceiling over the stages one after another: "
        f"{top / middle['ceiling: the stages one after another']:.2f}\n",
        flush=True,
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    with ray_session(2):
        print(f"{MODEL}, cut before block {cut()[0]} of {len(network())}")
        for size in options.batch_sizes:
            show(size, measure_all(size, options.batches, options.repeats, options.micro_batches))


if __name__ == "__main__":
    main()
