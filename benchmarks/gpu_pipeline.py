"""Question: what do several stages on one card gain over back-propagation on it, and what do the
carriers of their messages cost?

    python -m benchmarks.gpu_pipeline --model resnet50 --batch-size 128 --repeats 3
    python -m benchmarks.gpu_pipeline --cpu              a rehearsal on CPUs, sizes without meaning

K = 1, 2 and 4 stages share a card by halves and quarters; K = 1 under bp is plain training on it
(HUO section 5.5.2 found 70 % utilisation there). K = 2 is run with every carrier that the machine
has: inline through the host, ipc within the card, and with two cards distributed between them, a
card each. The utilisation is the share of time in which a kernel ran, as nvidia-smi tells, beside.
Without a GPU it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import RunConfig
from torch import Tensor, nn

from raylab import PipelineTrainer, models


class Images:
    """`count` batches of random images, made once where they are read."""

    def __init__(self, count: int, size: int, side: int) -> None:
        self.count, self.size, self.side = count, size, side

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        x: Tensor = torch.randn(self.size, 3, self.side, self.side, generator=generator)
        y = torch.randint(10, (self.size,), generator=generator)
        return iter([(x, y)] * self.count)


@dataclass(frozen=True, slots=True)
class Case:
    """One way to run."""

    method: str
    stages: int
    carrier: str
    gpus: float

    @property
    def label(self) -> str:
        """What the table calls it."""
        share = f", {self.gpus:g} GPU each" if self.gpus else ""
        return f"{self.method}, K = {self.stages}, {self.carrier}{share}"


def cases(cards: int) -> list[Case]:
    """Return what this machine can run; 0 cards: the rehearsal."""
    if not cards:
        plain = [Case(m, k, "inline", 0) for m, k in (("bp", 1), ("bp", 2), ("adl", 2), ("ddg", 2))]
        return [*plain, Case("adl", 2, "distributed", 0)]
    found = [Case("bp", 1, "auto", 1.0)]
    for stages in (2, 4):
        found += [Case(method, stages, "auto", 1 / stages) for method in ("bp", "ddg", "adl")]
        found.append(Case("adl", stages, "inline", 1 / stages))
    if cards > 1:
        found += [Case("adl", 2, carrier, 1.0) for carrier in ("distributed", "inline")]
    return found


class Utilisation:
    """The mean of what nvidia-smi says of all cards in use, each second; None where it is not."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._over = threading.Event()
        self._seen: list[float] = []
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Utilisation:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._enabled:
            self._thread.join()

    @property
    def percent(self) -> float | None:
        """The median over the seconds in which a card was in use at all."""
        busy = [each for each in self._seen if each > 0]
        return statistics.median(busy) if busy else None

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._over.wait(1.0):
            try:
                told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            except (OSError, subprocess.CalledProcessError):
                return
            used = [float(line) for line in told.split()]
            self._seen.append(statistics.mean([each for each in used if each > 0] or [0.0]))


def measure(case: Case, options: argparse.Namespace, storage: Path) -> tuple[float, float | None]:
    """Return samples per second without the first chunk (fill), and the utilisation in percent."""
    torch.manual_seed(0)
    chunk = max(2, options.batches // 5)
    resources = {"CPU": options.cpus, **({"GPU": case.gpus} if case.gpus else {})}
    trainer = PipelineTrainer(
        models.build(options.model),
        nn.CrossEntropyLoss(),
        method=case.method,
        stages=case.stages,
        carrier=case.carrier,
        precision=options.precision,
        optimizer=functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
        resources_per_stage=resources,
        checkpoint_minutes=0,
        run_config=RunConfig(storage_path=str(storage)),
    )
    images = Images(options.batches + chunk, options.batch_size, options.side)
    with Utilisation(enabled=bool(case.gpus)) as used:
        result = trainer.fit(images, report_every=chunk, progress=False)
    rows = [row for row in result.table.to_pylist() if row["epoch"] is None][1:]
    middle = statistics.median(row["stage_trained_s"][-1] for row in rows)
    return chunk * options.batch_size / middle, used.percent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--side", type=int, default=224, help="of the images, pixels")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpus", type=float, default=1.0, help="of each stage")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--cpu", action="store_true", help="rehearse with tiny sizes on CPUs")
    options = parser.parse_args(arguments)
    cards = torch.cuda.device_count()
    if options.cpu:
        cards, options.cpus = 0, 0.5
        options.model, options.batch_size, options.side = "resnet8", 4, 32
        options.batches, options.repeats = 10, 1
        print("a rehearsal on CPUs: these figures say nothing about a GPU")
    elif not cards:
        print(
            "this benchmark must have a GPU, but torch finds none: run it where one is, or "
            "rehearse with --cpu",
            file=sys.stderr,
        )
        return 2
    else:
        names = [torch.cuda.get_device_name(card) for card in range(cards)]
        print(f"{', '.join(names)}; torch {torch.__version__}; {vars(options)}")
    ray.init(address="local", num_gpus=cards, include_dashboard=False, log_to_driver=False)
    found: dict[str, list[tuple[float, float | None]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for case in cases(cards):
                speed, used = measure(case, options, Path(folder))
                found.setdefault(case.label, []).append((speed, used))
                print(f"  {case.label:<45} {speed:9.1f} samples/s", flush=True)
    ray.shutdown()
    base = statistics.median(speed for speed, _ in next(iter(found.values())))
    print("\n| | samples/s (range) | over bp, K = 1 | utilisation |\n| --- | --- | --- | --- |")
    for label, each in found.items():
        speeds = [speed for speed, _ in each]
        percents = [used for _, used in each if used is not None]
        shown = f"{statistics.median(percents):.0f} %" if percents else ""
        middle = statistics.median(speeds)
        print(
            f"| {label} | {middle:.1f} ({min(speeds):.1f}–{max(speeds):.1f}) "
            f"| {middle / base:.2f} | {shown} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
