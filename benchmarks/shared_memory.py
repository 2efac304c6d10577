"""Claim: two threads that share one w without locks make at least 0.9 of the steps that two
threads with a w each make.

    python -m benchmarks.shared_memory [--data FOLDER]

Steps of AsySVRG (HUO algorithm 1) a second, of the same compiled loop on the same rows: two threads
on one w, two threads on two, one thread alone. The three are interleaved; medians over the repeats
of the ratio within a repeat. Generated rows have the shapes of MNIST (dense) and RCV1 (sparse);
--data names a folder with LIBSVM files, of which ijcnn1 and a9a are taken too. w of ijcnn1 has 22
numbers, three cache lines: each step of one thread takes them away from the other, and only the
work between two writes, that is the mini-batch, helps. The last row is the paper's own network,
784×100×10, through numpy, where each step also waits for Python's lock.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from raylab.algorithms.shared_memory.epoch import draw, steps_in_python
from raylab.data import open_rows
from raylab.data.rows import RowBlock
from raylab.problems import Shard, build
from raylab.problems.kernels import RIDGE
from raylab.problems.linear import LinearModel, Loss
from raylab.problems.objective import Objective
from raylab.problems.softmax_mlp import SoftmaxMlp

STRENGTH = 1e-3


def mnist_shaped(rows: int = 10_000) -> RowBlock:
    """Return dense rows of 784 numbers with labels 0 to 9."""
    draws = np.random.default_rng(0)
    matrix = draws.random((rows, 784)) * (draws.random((rows, 784)) < 0.2)
    return RowBlock.of_matrix(matrix, draws.integers(10, size=rows).astype(np.float64))


def problems(data: Path | None) -> dict[str, tuple[Objective, list[tuple[int, int]]]]:
    """Return the objectives, and the (batch, coordinates) to measure each at."""
    images = mnist_shaped()
    whole = Shard(lo=0, hi=images.rows, n=images.rows)
    rcv1 = open_rows("sparse:n=50000,d=47236,density=0.0016")
    found: dict[str, tuple[Objective, list[tuple[int, int]]]] = {
        "ridge, dense 10,000 × 784": (
            LinearModel(images, whole, strength=STRENGTH, loss=Loss(code=RIDGE)),
            [(10, 784), (10, 100), (1, 784)],
        ),
        "logistic, sparse 50,000 × 47,236": (
            build("logistic", rcv1, Shard(lo=0, hi=rcv1.n, n=rcv1.n), strength=STRENGTH),
            [(10, 1000), (10, 47_236), (1, 1000)],
        ),
    }
    for name in ("a9a", "ijcnn1") if data is not None else ():
        rows = open_rows(f"libsvm:{data}/{name}.bz2")
        shard = Shard(lo=0, hi=rows.n, n=rows.n)
        objective = build("logistic", rows, shard, strength=STRENGTH)
        found[f"logistic, {name} {rows.n:,} × {rows.dim}"] = (
            objective,
            [(10, rows.dim), (100, rows.dim)],
        )
    found["softmax_mlp 784×100×10, numpy"] = (
        SoftmaxMlp(images, whole, strength=1e-3, hidden=100, classes=10, seed=0),
        [(10, 1000)],
    )
    return found


class Bench:
    """One objective at one mini-batch and block."""

    def __init__(self, objective: Objective, batch: int, block: int) -> None:
        self._objective, self._batch, self._block = objective, batch, block
        n = objective.shard.n
        self._gradient = objective.gradients(objective.initial()) / n
        self._slopes = np.zeros(n)
        self._steps = 64

    def calibrate(self, seconds: float) -> None:
        """Choose how many steps a thread makes."""
        while (rate := self.rate(threads=1, shared=False)) * seconds > 1.5 * self._steps:
            self._steps = int(min(rate * seconds, 8 * self._steps))

    def rate(self, *, threads: int, shared: bool) -> float:
        """Return steps a second of all threads, each of which makes the same number of them."""
        start = self._objective.initial()
        rows, blocks = draw(
            0, 0, self._steps * (threads if shared else 1), self._batch,
            self._objective.shard.n, len(start),
        )  # fmt: skip
        # The step is tiny, so that w hardly moves and no run differs from another.
        if isinstance(self._objective, LinearModel):
            steps: Callable[..., None] = self._objective.shared_steps
            fixed = (start, self._slopes, self._gradient)
            lead: tuple[Objective, ...] = ()
        else:
            steps = steps_in_python
            fixed, lead = (start, self._gradient), (self._objective,)
        common = start.copy()
        done = np.zeros((threads, 8), dtype=np.int64)
        barrier = threading.Barrier(threads + 1)
        ends = [0.0] * threads

        def work(thread: int) -> None:
            staleness = np.zeros(256, dtype=np.int64)
            if shared:
                arguments = (*lead, common, *fixed, 1e-9, rows, blocks, self._block)
                rest = (thread, threads, done, staleness)
            else:
                arguments = (*lead, start.copy(), *fixed, 1e-9, rows, blocks, self._block)
                rest = (0, 1, np.zeros((1, 8), dtype=np.int64), staleness)
            barrier.wait()
            steps(*arguments, *rest)
            ends[thread] = time.perf_counter()

        pool = [threading.Thread(target=work, args=(k,)) for k in range(threads)]
        for each in pool:
            each.start()
        barrier.wait()
        began = time.perf_counter()
        for each in pool:
            each.join()
        return self._steps * threads / (max(ends) - began)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with a9a.bz2 and ijcnn1.bz2")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.4, help="of one measurement")
    options = parser.parse_args()
    print("| problem | b | c | one w, µs/step | of two w's | two w's, of one thread twice |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (objective, settings) in problems(options.data).items():
        for batch, block in settings:
            bench = Bench(objective, batch, block)
            bench.calibrate(options.seconds)
            ratios, ceilings, costs = [], [], []
            for _ in range(options.repeats):
                shared = bench.rate(threads=2, shared=True)
                apart = bench.rate(threads=2, shared=False)
                alone = bench.rate(threads=1, shared=False)
                ratios.append(shared / apart)
                ceilings.append(apart / alone / 2)
                costs.append(1e6 / shared)
            print(
                f"| {name} | {batch} | {block} | {statistics.median(costs):.2f} "
                f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) "
                f"| {statistics.median(ceilings):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
