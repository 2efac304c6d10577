"""Claim: at equal epochs Local SGD and DaSGD train to the accuracy of mini-batch SGD, or above it,
without any tuning for the large batch (DASGD Table I), at a size that fits two cores: ResNet-8, 32
workers with batches of 32 (a global batch of 1,024), tau = 4, d = 1, xi = 0.25, three seeds; every
method with the same batches, epochs, rate and schedule (1 % to all of it in the first 30 % of the
epochs in the paper; here a warm-up and a cosine).

    python -m benchmarks.averaging_accuracy --data npz:PATH --storage runs/averaging --epochs 30

The replicas live in one process (`raylab simulate`): what is computed is what 32 workers compute.
Every run is a folder of its own in the storage, and its result.json what remains of it: a run that
is there is not run again, so the command may be stopped and given again. `--table` prints what is
there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS = ("minibatch_sgd", "local_sgd", "dasgd")


def name_of(method: str, seed: int, options: argparse.Namespace) -> str:
    """Return the folder of a run."""
    return f"{method}-w{options.workers}-b{options.batch_size}-seed{seed}"


def train(method: str, seed: int, options: argparse.Namespace) -> None:
    """Make one run as a user would; a loss that is not finite is a result, too."""
    folder = options.storage / name_of(method, seed, options)
    if (folder / "result.json").exists() or (folder / "diverged.txt").exists():
        return
    # A simulation that was interrupted has no checkpoint to go on from.
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "raylab", "simulate", method, f"workers={options.workers}"),
        *(f"model={options.model}", f"data={options.data}", f"image_size={options.image_size}"),
        *(f"batch_size={options.batch_size}", "eval_batch_size=500", "augment=true"),
        *(f"epochs={options.epochs}", f"lr={options.lr}", "momentum=0.9", "weight_decay=5e-4"),
        *("schedule=cosine", f"warmup_epochs={0.3 * options.epochs:g}", "step_s=0.1"),
        *(f"seed={seed}", f"evaluate_every={options.epochs}", f"storage={options.storage}"),
        *(f"name={folder.name}", "--quiet"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 1 and "must be finite" in done.stderr:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "diverged.txt").write_text(done.stderr)
    elif done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")


def results(method: str, options: argparse.Namespace) -> Iterator[dict[str, Any] | None]:
    """Yield the last row of every run that is there, None where the loss diverged."""
    for seed in options.seeds:
        folder = options.storage / name_of(method, seed, options)
        if (folder / "diverged.txt").exists():
            yield None
        elif (folder / "result.json").exists():
            found: dict[str, Any] = json.loads((folder / "result.json").read_text())
            yield found["metrics"]


def table(options: argparse.Namespace) -> None:
    """Print the accuracies as Markdown."""
    print("| method | W | seeds | test accuracy %, mean (each) | training loss | diverged |")
    print("| --- | --- | --- | --- | --- | --- |")
    for method in METHODS:
        found = list(results(method, options))
        ended = [row for row in found if row is not None]
        if not found:
            continue
        accuracies = [100 * row["test_accuracy"] for row in ended]
        mean = f"{statistics.mean(accuracies):.2f}" if ended else ""
        each = ", ".join(f"{value:.2f}" for value in accuracies)
        loss = f"{statistics.mean(row['loss'] for row in ended):.4f}" if ended else ""
        print(
            f"| {method} | {options.workers} | {len(found)} | {mean} ({each}) | {loss} "
            f"| {len(found) - len(ended)} |"
        )


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", help="as raylab simulate has it")
    parser.add_argument("--storage", type=Path, default=Path("runs/averaging"))
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32, help="of a worker")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    for seed in [] if options.table else options.seeds:
        for method in METHODS:
            train(method, seed, options)
            print(name_of(method, seed, options), flush=True)
    table(options)


if __name__ == "__main__":
    main()
