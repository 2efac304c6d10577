"""Claim: with large batches CLARS needs no warm-up (HUO Fig. 13): in 20 epochs it reaches a
training loss that LARS does not, with 0, 5, 10 or 20 epochs of warm-up, and LARS at CLARS's
coefficient is worse or diverges.

    python -m benchmarks.large_batch --data npz:mnist.npz --storage runs/large_batch
    python -m benchmarks.large_batch --data npz:cifar10.npz --model resnet20 --batch-size 4096

gamma_scale = 0.1 B / 128 for all (4.3), eta = 0.001 for LARS and 0.01 for CLARS, momentum 0.9, no
decay. A batch of B is computed in pieces; an epoch has as many whole batches as the data give, so
that an update is always of B samples. The loss of an epoch is the mean over its batches as they
are trained with. Every run is a file of its own: one that is there is not run again, so that the
command may be stopped and given again. It ends with a table; --png FOLDER draws the curves.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raylab.data import load
from raylab.models import build
from raylab.optimizers import Schedule, linear_scaling, make_optimizer
from raylab.report.figure import LEGEND_ABOVE, Figure, axis, plot
from raylab.report.palette import LIGHT, run_tone
from raylab.report.png import write_pngs

DIVERGED = 1e4
"""A training loss from which no run comes back."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One curve."""

    title: str
    optimizer: str
    trust: float
    warmup_epochs: float = 0.0

    def file(self, seed: int) -> str:
        """Return the name of a run's file."""
        plain = self.title.lower().replace(" ", "-").replace(",", "").replace("=", "")
        return f"{plain}-seed{seed}.json"


CASES = [
    Case(title="CLARS", optimizer="clars", trust=0.01),
    *(
        Case(title=f"LARS, warm-up {n}", optimizer="lars", trust=0.001, warmup_epochs=n)
        for n in (0, 5, 10, 20)
    ),
    Case(title="LARS, eta 0.01", optimizer="lars", trust=0.01),
]


def train(case: Case, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and return its rows."""
    data = load(
        options.data,
        batch_size=options.piece,
        eval_batch_size=1000,
        seed=seed,
        augment=options.augment,
        image_size=options.image_size,
    )
    channels, height, _ = data.input_shape
    torch.manual_seed(seed)
    model: nn.Module = build(
        options.model,
        in_channels=channels,
        num_classes=data.num_classes,
        image_size=height,
        **({"width": options.width} if options.width else {}),
    )
    pieces = options.batch_size // options.piece
    updates = len(data.train) // pieces
    if updates < 1:
        raise SystemExit(f"--batch-size must leave an update an epoch, but {options.data} does not")
    lr = linear_scaling(0.1, options.batch_size, 128)
    optimizer = make_optimizer(
        case.optimizer, lr, trust=case.trust, momentum=0.9, plain=options.plain
    )(model.parameters())
    optimizer.watch(model)
    schedule = Schedule(warmup_epochs=case.warmup_epochs).bind(updates)(optimizer)
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    for epoch in range(options.epochs):
        data.train.set_epoch(epoch)
        losses = []
        for batch in batches(data.train, pieces, updates):
            losses.append(update(model, optimizer, batch))
            schedule.step()
        figures = optimizer.layer_figures()
        rows.append(
            {
                "epoch": epoch + 1,
                "loss": statistics.mean(losses),
                "test_accuracy": accuracy(model, data.test),
                "time_s": round(time.perf_counter() - began, 1),
                **figures,
            }
        )
        if not math.isfinite(rows[-1]["loss"]) or rows[-1]["loss"] > DIVERGED:
            rows[-1]["loss"] = None
            break
    return {
        "case": case.title,
        "seed": seed,
        "lr": lr,
        "updates_per_epoch": updates,
        **{key: str(value) for key, value in vars(options).items()},
        "rows": rows,
    }


def batches(train: Any, pieces: int, count: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield whole batches, in pieces."""
    source = iter(train)
    for _ in range(count):
        yield [next(source) for _ in range(pieces)]


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[tuple[Tensor, Tensor]]
) -> float:
    """Make one update from all pieces of a batch, and return its mean loss."""
    model.train()
    optimizer.zero_grad()
    total = 0.0
    for x, y in batch:
        loss = F.cross_entropy(model(x), y) / len(batch)
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    return total


@torch.no_grad()
def accuracy(model: nn.Module, test: Any) -> float:
    """Return the share of test images whose class is told."""
    model.eval()
    found = [(model(x).argmax(1) == y).double().mean().item() * len(y) for x, y in test]
    return sum(found) / sum(len(y) for _, y in test)


def results(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the runs of a case that are there."""
    files = [options.storage / case.file(seed) for seed in range(options.seeds)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def table(options: argparse.Namespace) -> None:
    """Print the last epochs as Markdown."""
    print("| optimiser | seeds | training loss, mean (each) | test accuracy % | diverged |")
    print("| --- | --- | --- | --- | --- |")
    for case in CASES:
        runs = [run["rows"][-1] for run in results(case, options)]
        ended = [row for row in runs if row["loss"] is not None]
        if not runs:
            continue
        losses = [row["loss"] for row in ended]
        mean = f"{statistics.mean(losses):.4f}" if losses else ""
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        right = [100 * row["test_accuracy"] for row in ended]
        percent = f"{statistics.mean(right):.2f}" if right else ""
        print(
            f"| {case.title} | {len(runs)} | {mean} ({each}) | {percent} "
            f"| {len(runs) - len(ended)} |"
        )


def draw(options: argparse.Namespace) -> None:
    """Write the curves of the training loss, a line a seed."""
    traces = []
    for i, case in enumerate(CASES):
        for j, run in enumerate(results(case, options)):
            rows = [row for row in run["rows"] if row["loss"] is not None]
            traces.append(
                go.Scatter(
                    x=[row["epoch"] for row in rows],
                    y=[row["loss"] for row in rows],
                    name=case.title,
                    legendgroup=case.title,
                    showlegend=j == 0,
                    mode="lines",
                    line={"color": LIGHT[run_tone(i)], "width": 2},
                )
            )
    figure = Figure(
        name=f"large-batch-{options.model}",
        section="Large batches",
        title=f"Training loss, {options.model}, B = {options.batch_size}",
        note="A line a seed.",
        plot=plot(
            traces,
            axis("epoch", rangemode="tozero"),
            axis("training loss, logarithmic", type="log", dtick="D2", exponentformat="power"),
            height=420,
            **LEGEND_ABOVE,
        ),
    )
    for path in write_pngs([figure], options.png):
        print(path)


def main() -> None:
    """Run what is missing, then print the table and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="mnist", help="as raylab train has it")
    parser.add_argument("--model", default="resnet8", help="as raylab train has it")
    parser.add_argument("--width", type=int, help="of fcn5 and cnn5")
    parser.add_argument("--image-size", type=int, help="pixels; default: the data's")
    parser.add_argument("--augment", action="store_true", help="crop and mirror")
    parser.add_argument("--batch-size", type=int, default=4096, help="B")
    parser.add_argument("--piece", type=int, default=256, help="samples computed at a time")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plain", type=float, default=1.0, help="see raylab.optimizers.LARS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--storage", type=Path, default=Path("runs/large_batch"))
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--png", type=Path, help="folder to draw the curves in")
    options = parser.parse_args()
    if options.batch_size % options.piece:
        raise SystemExit("--batch-size must be a multiple of --piece")
    torch.set_num_threads(options.threads)
    options.storage.mkdir(parents=True, exist_ok=True)
    for seed in range(0 if options.table else options.seeds):
        for case in CASES:
            file = options.storage / case.file(seed)
            if file.exists():
                continue
            found = train(case, seed, options)
            aside = file.with_suffix(".part")
            aside.write_text(json.dumps(found))
            aside.replace(file)
            print(f"{file.name}: {found['rows'][-1]['loss']}", flush=True)
    table(options)
    if options.png is not None:
        draw(options)


if __name__ == "__main__":
    main()
