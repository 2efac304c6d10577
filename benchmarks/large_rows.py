"""Claim: rows that fill the memory train within it, checkpoints and the loss of a worker included.

    python -m benchmarks.large_rows pca [--rows 500000] [--methods dis_dfsdca asysvrg]
    python -m benchmarks.large_rows rcv1 [--rows 677399] [--methods dis_dfsdca cocoa_plus …]

`pca`: n = 500,000 dense rows of d = 500, drawn shard by shard as float32 (1 GB), with a dual vector
for each of a method with duals (2 GB of float64); φ_i that are not convex (mu = 0.1). Bound: 6 GB.
`rcv1`: 677,399 × 47,236, 0.16 % dense (0.6 GB), ridge. Bound: 4 GB.

The trainer runs from end to end, with a checkpoint every few messages; `--dies` kills a worker in
the middle of a message, which another process replaces from its part of the newest one. Memory is
the PSS of driver, server, workers and Ray's own processes, added up at each look; the bound is for
all of them. With fewer rows the same path runs in seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig

from benchmarks.process_memory import MemoryWatch
from benchmarks.session import ray_session
from raylab import ParameterServerTrainer
from raylab.data import open_rows
from raylab.drivers.listener import OnRow

_GIB = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """Data of one shape, and what trains on it.

    Args:
        rows: n.
        spec: of the rows, but for n.
        problem: to be trained.
        strength: λ.
        options: of the problem.
        bound_gb: of all processes together.
        methods: that are tried.
        epochs: at most.
    """

    rows: int
    spec: str
    problem: str
    strength: float
    options: dict[str, Any]
    bound_gb: float
    methods: tuple[str, ...]
    epochs: float


CASES = {
    "pca": Case(
        rows=500_000,
        spec="pca:n={n},d=500",
        problem="pca",
        strength=1e-4,
        options={"mu": 0.1},
        bound_gb=6.0,
        methods=("dis_dfsdca", "asysvrg"),
        epochs=4.0,
    ),
    "rcv1": Case(
        rows=677_399,
        spec="sparse:n={n},d=47236,density=0.0016",
        problem="ridge",
        strength=1e-4,
        options={},
        bound_gb=4.0,
        methods=("dis_dfsdca", "cocoa_plus", "sdca", "asysvrg"),
        epochs=10.0,
    ),
}


def measure(
    case: Case, method: str, options: argparse.Namespace, on_row: OnRow | None = None
) -> dict[str, Any]:
    """Train once in the Ray that there is, to the end or until `on_row` asks for it; return what it
    took.
    """
    workers = 1 if method == "sdca" else options.workers
    began = time.perf_counter()
    source = open_rows(case.spec.format(n=options.rows or case.rows))
    described_s = time.perf_counter() - began
    straggler = f"dies:worker=0,message={options.dies}" if options.dies else None
    with tempfile.TemporaryDirectory(prefix="raylab-large-") as folder, MemoryWatch() as memory:
        began = time.perf_counter()
        trainer = ParameterServerTrainer(
            case.problem,
            method=method,
            workers=workers,
            strength=case.strength,
            options=case.options,
            straggler=straggler,
            checkpoint_every=options.checkpoint_every,
            checkpoint_minutes=options.checkpoint_minutes,
            resources_per_worker={"CPU": options.cpus},
            run_config=RunConfig(
                storage_path=folder, name="run", failure_config=FailureConfig(max_failures=3)
            ),
        )
        found = trainer.fit(
            source,
            epochs=options.epochs or case.epochs,
            tolerance=options.tolerance,
            progress=options.progress,
            on_row=on_row,
        )
        whole_s = time.perf_counter() - began
        parts = {path.name: path.stat().st_size for path in Path(folder).rglob("worker-*")}
    last = found.metrics
    ran_s = last["time_s"]
    figure = found.summary["figure"]
    return {
        "method": method,
        "workers": workers,
        "described_s": described_s,
        "before_s": whole_s - ran_s,
        "epochs": last["epoch"],
        "epoch_s": ran_s / max(last["epoch"], 1e-9),
        "messages": last["messages"],
        "figure": figure,
        "first": found.table.column(figure)[0].as_py(),
        "value": last[figure],
        "relation": last.get("relation"),
        "parts": parts,
        "peak_gb": memory.peak_bytes / _GIB,
        "peaks": {name: size / _GIB for name, size in memory.peaks.items()},
    }


def shown(name: str, bound_gb: float, found: dict[str, Any]) -> str:
    """Return a row of the table."""
    roles: dict[str, list[float]] = {}
    for process, size in found["peaks"].items():
        roles.setdefault(process.split()[0], []).append(size)
    each = ", ".join(
        f"{role} {' + '.join(f'{size:.2f}' for size in sizes)}"
        for role, sizes in sorted(roles.items())
        if role != "ray"
    )
    each += f", Ray {sum(roles.get('ray', [])):.2f}"
    relation = "" if found["relation"] is None else f"{found['relation']:.0e}"
    cells = [
        name,
        found["method"],
        str(found["workers"]),
        f"{found['described_s']:.1f} + {found['before_s']:.0f}",
        f"{found['epoch_s']:.1f}",
        f"{found['messages'] / max(found['epochs'], 1e-9):.0f}",
        f"{found['epochs']:.2f}",
        f"{found['first']:.1e} → {found['value']:.1e} ({found['figure']})",
        relation,
        each,
        f"**{found['peak_gb']:.2f}** of {bound_gb:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def asked(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what is asked for, on the command line where no words are given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--rows", type=int, help="n; default: the whole shape")
    parser.add_argument("--methods", nargs="*", help="default: all of the case")
    parser.add_argument("--workers", type=int, default=2, help="of methods that take several")
    parser.add_argument("--cpus", type=float, default=1.0, help="of each worker, as Ray counts")
    parser.add_argument("--epochs", type=float, help="at most")
    parser.add_argument("--tolerance", type=float, default=1e-8)
    parser.add_argument("--checkpoint-every", type=int, default=0, help="messages; 0: the time")
    parser.add_argument("--checkpoint-minutes", type=float, default=0.25)
    parser.add_argument("--dies", type=int, default=0, help="message in which a worker dies")
    parser.add_argument("--progress", action="store_true", help="on standard error")
    return parser.parse_args(words)


def main() -> None:
    """Run what the options ask for."""
    options = asked()
    case = CASES[options.case]
    print(
        "| data | method | K | s to describe + place, draw, end | s an epoch | messages an epoch | "
        "epochs | figure | relation (3.3) | peak GiB of each process | peak of the sum, GiB |"
    )
    print("|" + " --- |" * 11, flush=True)
    for method in options.methods or case.methods:
        with ray_session(options.workers + 1):
            found = measure(case, method, options)
        print(shown(options.case, case.bound_gb, found), flush=True)


if __name__ == "__main__":
    main()
