"""Run each peer on a small network and print a table: `python -m benchmarks.peers --quick`.

It proves that the peers work; its times are of a network too small to claim anything by.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from benchmarks.peers.ceiling import measure_ceiling
from benchmarks.peers.ddp import measure_ddp
from benchmarks.peers.processes import PeerError
from benchmarks.peers.raw_wires import SIZES_BYTES, WIRES, measure_wires
from benchmarks.peers.single_process import measure_single_process
from benchmarks.peers.tiny import tiny_workload
from benchmarks.peers.torch_pipeline import ScheduleName, best_micro_batches, sweep_micro_batches
from benchmarks.peers.workload import Sample

_RELATIVE_TOLERANCE = 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the smoke measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few batches, messages and sizes")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="for each measurement"
    )
    options = parser.parse_args(arguments)
    quick: bool = options.quick
    timeout_s: float = options.timeout
    _training(batches=8 if quick else 50, quick=quick, timeout_s=timeout_s)
    _wires(quick=quick, timeout_s=timeout_s)


def _training(*, batches: int, quick: bool, timeout_s: float) -> None:
    workload = tiny_workload()
    samples: dict[str, Sample] = {}
    for threads in (1, 2):
        samples[f"single process, threads={threads}"] = measure_single_process(
            workload, threads=threads, batches=batches, timeout_s=timeout_s
        )
    samples["DDP, 2 processes"] = measure_ddp(workload, batches=batches, timeout_s=timeout_s)
    schedules: tuple[ScheduleName, ...] = ("gpipe", "1f1b")
    for schedule in schedules:
        sweep = sweep_micro_batches(
            workload,
            schedule=schedule,
            micro_batches=(2, 4) if quick else (2, 4, 8),
            batches=batches,
            timeout_s=timeout_s,
        )
        best = best_micro_batches(sweep)
        for count, sample in sweep.items():
            mark = ", best" if count == best else ""
            samples[f"torch {schedule}, {count} micro-batches{mark}"] = sample
    ceiling = measure_ceiling(workload, batches=batches, timeout_s=timeout_s)

    print(f"{'peer':36}{'samples/s':>12}{'median ms':>12}{'batches':>10}{'last loss':>12}")
    for name, sample in samples.items():
        print(
            f"{name:36}{sample.samples_per_s:12.0f}{sample.median_batch_s * 1e3:12.2f}"
            f"{sample.batches:10d}{sample.last_loss:12.6f}"
        )
    print(
        f"{'ceiling, free-running':36}{ceiling.samples_per_s:12.0f}{ceiling.period_s * 1e3:12.2f}"
        f"{ceiling.batches:10d}"
    )
    print(
        f"{'ceiling, paced':36}{ceiling.paced_samples_per_s:12.0f}"
        f"{ceiling.paced_period_s * 1e3:12.2f}{ceiling.batches:10d}"
    )
    for stage, (solo, together) in enumerate(
        zip(ceiling.solo_s, ceiling.concurrent_s, strict=True)
    ):
        print(f"  stage {stage}: {solo * 1e3:.2f} ms alone, {together * 1e3:.2f} ms together")
    print(
        f"  over serial back-propagation: {ceiling.speed_up:.2f} times, "
        f"paced {ceiling.paced_speed_up:.2f} times"
    )
    _check_same_training(samples)


def _check_same_training(samples: dict[str, Sample]) -> None:
    [reference, *others] = samples.items()
    for name, sample in others:
        if not math.isclose(sample.last_loss, reference[1].last_loss, rel_tol=_RELATIVE_TOLERANCE):
            raise PeerError(
                f"all peers must train alike, but the last loss of {name} is {sample.last_loss} "
                f"and that of {reference[0]} is {reference[1].last_loss}"
            )


def _wires(*, quick: bool, timeout_s: float) -> None:
    sizes = SIZES_BYTES[:1] + SIZES_BYTES[2:3] if quick else SIZES_BYTES
    costs = measure_wires(
        sizes_bytes=sizes,
        messages=40 if quick else None,
        repeats=3 if quick else 7,
        timeout_s=timeout_s,
    )
    print("\n" + f"{'wire, µs per message':24}" + "".join(f"{size >> 10:>10} KB" for size in sizes))
    for wire in WIRES:
        row = [cost.median_us for cost in costs if cost.wire == wire]
        print(f"{wire:24}" + "".join(f"{median:13.1f}" for median in row))


if __name__ == "__main__":
    main()
