"""Claim: delayed gradients train to the accuracy of back-propagation, and accumulation is what
makes many stages trainable (HUO Tables 5 and 7; ADL Tables I and II), at a size that fits two
cores: ResNet-20, three seeds, every method with the same batches, budget and schedule.

    python -m benchmarks.accuracy --data npz:PATH --storage runs/accuracy --epochs 16

Every run is a folder of its own in the storage: a run that is there is not run again, one that was
interrupted goes on, so the command may be stopped and given again. `--table` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table."""

    method: str
    stages: int
    accumulate: int

    @property
    def lr(self) -> float:
        """The learning rate that ADL states for b samples and M batches: 0.1 b M / 256."""
        return 0.1 * BATCH * self.accumulate / 256

    def __str__(self) -> str:
        return f"{self.method}-k{self.stages}-m{self.accumulate}"

    def name(self, seed: int) -> str:
        """Return the folder of a run."""
        return f"{self}-seed{seed}"


CASES = [
    Case(method="bp", stages=4, accumulate=1),
    Case(method="adl", stages=4, accumulate=4),
    Case(method="adl", stages=8, accumulate=1),
    Case(method="adl", stages=8, accumulate=4),
    Case(method="bp", stages=4, accumulate=4),
    Case(method="ddg", stages=4, accumulate=1),
    Case(method="fr", stages=4, accumulate=1),
]


def train(case: Case, seed: int, options: argparse.Namespace) -> None:
    """Make one run as a user would; a loss that is not finite is a result, too."""
    folder = options.storage / case.name(seed)
    if (folder / "result.json").exists() or (folder / "diverged.txt").exists():
        return
    command = [
        *(sys.executable, "-m", "raylab", "train", case.method),
        *("model=resnet20", f"data={options.data}", f"image_size={options.image_size}"),
        *(f"batch_size={BATCH}", "eval_batch_size=500", "augment=true", f"epochs={options.epochs}"),
        *(f"stages={case.stages}", f"accumulate={case.accumulate}", f"seed={seed}"),
        *(f"lr={case.lr}", "momentum=0.9", "weight_decay=5e-4"),
        *("schedule=cosine", "warmup_epochs=1"),
        *(f"storage={options.storage}", f"name={case.name(seed)}", "--quiet"),
    ]
    if (folder / "config.yaml").exists():
        command = [sys.executable, "-m", "raylab", "resume", str(folder), "--quiet"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 1 and "NaN" in done.stderr:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "diverged.txt").write_text(done.stderr)
    elif done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")


def results(case: Case, options: argparse.Namespace) -> Iterator[float | None]:
    """Yield the final test accuracy of every run that is there, None where the loss diverged."""
    for seed in options.seeds:
        folder = options.storage / case.name(seed)
        if (folder / "diverged.txt").exists():
            yield None
        elif (folder / "result.json").exists():
            found: dict[str, Any] = json.loads((folder / "result.json").read_text())
            yield found["metrics"]["test_accuracy"]


def chosen(options: argparse.Namespace) -> list[Case]:
    """Return the rows that are asked for."""
    return [case for case in CASES if str(case) in options.cases]


def table(options: argparse.Namespace) -> None:
    """Print the accuracies as Markdown."""
    print("| method | K | M | seeds | test accuracy %, mean (each) | diverged |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in chosen(options):
        found = list(results(case, options))
        ended = [100 * each for each in found if each is not None]
        if not found:
            continue
        mean = f"{statistics.mean(ended):.2f}" if ended else ""
        each = ", ".join(f"{value:.2f}" for value in ended)
        print(
            f"| {case.method} | {case.stages} | {case.accumulate} | {len(found)} "
            f"| {mean} ({each}) | {len(found) - len(ended)} |"
        )


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", help="as raylab train has it")
    parser.add_argument("--storage", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    names = [str(case) for case in CASES]
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help=f"of\n{', '.join(names)}",
    )
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    for seed in [] if options.table else options.seeds:
        for case in chosen(options):
            train(case, seed, options)
            print(case.name(seed), flush=True)
    table(options)


if __name__ == "__main__":
    main()
