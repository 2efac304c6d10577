"""Claim: with stragglers, workers that wait for nobody reach a duality gap sooner than rounds do.

    python -m benchmarks.stragglers ijcnn1=PATH a9a=PATH mushrooms=PATH covtype=PATH
        [--workers 4 8 16] [--draws 5] [--pca n=20000,d=100] [--json FILE]

Dis-dfSDCA against CoCoA+ on ridge (HUO Fig. 6), Dis-dfSDCA against AsySVRG on (3.40) (Fig. 8), and
Dis-dfSDCA's speed-up against workers (Fig. 7), all with the papers' stragglers (p = 0.2, up to ten
times). Time is virtual: the product's server, workers and rules under `raylab.simulator`, 100 µs
a sample, 100 µs a message, 1 Gbit/s; options change that. A method is tuned on the first draw of
delays, over its messages' size and its step; then it meets all draws, which are the same for all
methods, and the medians are compared. A method that has not arrived after `--epochs` has no time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.server.loop import Ends
from raylab.algorithms.server.rule_factory import ServerSettings, auto_eta
from raylab.algorithms.server.stragglers import parse
from raylab.data import open_rows
from raylab.errors import NonFiniteLossError
from raylab.problems import Objective, build, shards
from raylab.simulator import Timing, simulate

STRAGGLER = "paper:p=0.2,times=10"
CERTIFICATES_PER_EPOCH = 24


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When a run has arrived: the first certificate with `figure` - `least` <= `tolerance`."""

    figure: str
    tolerance: float
    least: float = 0.0
    epochs: float = 400.0


@dataclass(frozen=True, kw_only=True)
class Best:
    """A method's best choice, and its time with each draw of the delays."""

    method: str
    workers: int
    choice: dict[str, Any]
    times_s: list[float]
    epochs: float

    @property
    def median_s(self) -> float:
        """Return the median time."""
        return statistics.median(self.times_s)


def objectives_of(
    spec: str, problem: str, workers: int, strength: float, folder: Path, **options: Any
) -> list[Objective]:
    """Return one objective a worker."""
    source = open_rows(spec, folder=folder)
    return [
        build(problem, source, shard, strength=strength, **options)
        for shard in shards(source.n, workers)
    ]


def settings_of(method: str, objectives: Sequence[Objective], **options: Any) -> ServerSettings:
    """Return the settings of a method on these shards."""
    first = objectives[0]
    n = first.shard.n
    return ServerSettings(
        method=method,
        workers=len(objectives),
        n=n,
        dim=first.dim,
        strength=first.strength,
        smoothness=max(each.smoothness for each in objectives),
        curvature=sum(each.curvature() for each in objectives) / n,
        convex=all(each.convex for each in objectives),
        **options,
    )


def arrival(
    settings: ServerSettings,
    objectives: Sequence[Objective],
    goal: Goal,
    timing: Timing,
    draw: int,
    before_s: float = math.inf,
) -> tuple[float, float]:
    """Return the virtual seconds and the epochs until the goal; infinity if it is not reached.

    Args:
        settings: of the method.
        objectives: one a worker.
        goal: to be reached.
        timing: of the machine.
        draw: seed of the delays.
        before_s: a time that is known to be good enough: later is as good as never.
    """
    # In slices, so that a bad choice is given up when a better one would have arrived; short ones
    # where the goal is below zero, which no tolerance of a run can be.
    stops = goal.least + goal.tolerance > 0
    limit = min(goal.epochs, (goal.epochs if before_s == math.inf else 40.0) if stops else 1.0)
    while True:
        ends = Ends(
            samples=limit * settings.n,
            tolerance=goal.least + goal.tolerance if stops else 0.0,
            figure=goal.figure,
            certify_samples=settings.n / CERTIFICATES_PER_EPOCH,
        )
        try:
            found = simulate(
                settings, objectives, straggler=parse(STRAGGLER, draw), timing=timing, ends=ends
            )
        except NonFiniteLossError:
            return math.inf, math.inf
        for row in found.rows:
            if row[goal.figure] - goal.least <= goal.tolerance:
                return row["time_s"], row["epoch"]
        if limit >= goal.epochs or found.figures["time_s"] > before_s:
            return math.inf, math.inf
        limit = min(goal.epochs, 4 * limit)


def choices(method: str, base: ServerSettings) -> Iterator[dict[str, Any]]:
    """Yield the messages' sizes and steps that a method is tuned over."""
    shard = base.n // base.workers
    if method == "cocoa_plus":
        for passes in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
            yield {"local_steps": max(1, round(passes * shard))}
        return
    if method == "dis_dfsdca":
        middle = base.message_samples
        sizes = {middle // 2, middle, 2 * middle} if middle > 1 else {1, 4, 16, 64}
        for size in sorted(sizes):
            auto = auto_eta(replace(base, local_steps=size))
            # Beyond 1/(λn) a dual overshoots what it is replaced by.
            for eta in sorted({auto, min(1.5 * auto, 1 / base.lambda_n)}):
                yield {"local_steps": size, "eta": eta}
        return
    for batch, inner, times in itertools.product((8, 64), (20, 200), (1.0, 2.0)):
        eta = times * auto_eta(replace(base, batch=batch))
        yield {"batch": batch, "inner": inner, "eta": eta}


def tuned(
    method: str, objectives: Sequence[Objective], goal: Goal, timing: Timing, draws: int
) -> Best:
    """Return a method at its best, over all draws of the delays."""
    base = settings_of(method, objectives)
    best: tuple[float, float, dict[str, Any]] = (math.inf, math.inf, {})
    for choice in choices(method, base):
        settings = replace(base, **choice)
        time_s, epochs = arrival(settings, objectives, goal, timing, 0, best[0])
        if time_s < best[0]:
            best = (time_s, epochs, choice)
    times = [best[0]]
    if best[0] < math.inf:
        settings = replace(base, **best[2])
        times += [arrival(settings, objectives, goal, timing, draw)[0] for draw in range(1, draws)]
    return Best(
        method=method,
        workers=len(objectives),
        choice=best[2],
        times_s=times,
        epochs=best[1],
    )


def compare(
    name: str, methods: Iterable[str], objectives: Sequence[Objective], goal: Goal,
    timing: Timing, draws: int,
) -> list[Best]:  # fmt: skip
    """Tune methods on one problem, print a line, return what they did."""
    found = [tuned(method, objectives, goal, timing, draws) for method in methods]
    words = [
        f"{best.method} {best.median_s:.4g} s, {best.epochs:.3g} epochs at "
        + ", ".join(f"{key}={value:.3g}" for key, value in best.choice.items())
        for best in found
    ]
    ratio = f" | {found[1].median_s / found[0].median_s:.2f}x" if len(found) > 1 else ""
    print(f"{name:12s} K={len(objectives):2d} | {' | '.join(words)}{ratio}", flush=True)
    return found


def quadratic_optimum(objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """Return where a quadratic P is least; its Hessian is found column by column."""
    first = objectives[0]
    n, dim, strength = first.shard.n, first.dim, first.strength

    def gradient(w: Any) -> Any:
        return sum(each.gradients(w) for each in objectives) / n + strength * w

    zero = gradient(np.zeros(dim))
    hessian = np.stack([gradient(column) - zero for column in np.eye(dim)])
    optimum: NDArray[np.float64] = np.linalg.solve(hessian, -zero)
    return optimum


def least_value(objectives: Sequence[Objective]) -> float:
    """Return the least P of a quadratic."""
    first = objectives[0]
    w = quadratic_optimum(objectives)
    losses = sum(each.losses(w) for each in objectives)
    return float(losses / first.shard.n + first.strength / 2 * w @ w)


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="*", help="NAME=PATH of LIBSVM files")
    parser.add_argument("--workers", nargs="*", type=int, default=[4, 8, 16])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--strength", type=float, default=0.1, help="lambda of ridge")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="duality gap of ridge")
    parser.add_argument("--epochs", type=float, default=400.0)
    parser.add_argument("--sample-us", type=float, default=100.0)
    parser.add_argument("--latency-us", type=float, default=100.0)
    parser.add_argument("--pca", default="", help="n=N,d=D of generated rows; empty: none")
    parser.add_argument("--speedup", action="store_true", help="also against one worker")
    parser.add_argument("--folder", type=Path, help="of the rows, mapped from there")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    timing = Timing(sample_s=options.sample_us * 1e-6, latency_s=options.latency_us * 1e-6)
    folder = options.folder or Path(tempfile.gettempdir()) / "raylab-rows"
    out: list[dict[str, Any]] = []

    def note(name: str, found: Iterable[Best]) -> None:
        out.extend({"data": name, **vars(best), "median_s": best.median_s} for best in found)

    goal = Goal(figure="duality_gap", tolerance=options.tolerance, epochs=options.epochs)
    for data in options.data:
        name, _, path = data.partition("=")
        one: Best | None = None
        if options.speedup:
            alone = objectives_of(f"libsvm:{path}", "ridge", 1, options.strength, folder)
            (one,) = compare(name, ["dis_dfsdca"], alone, goal, timing, options.draws)
            note(name, [one])
        for workers in options.workers:
            shared = objectives_of(f"libsvm:{path}", "ridge", workers, options.strength, folder)
            pair = ["dis_dfsdca", "cocoa_plus"]
            found = compare(name, pair, shared, goal, timing, options.draws)
            note(name, found)
            if one is not None:
                print(f"{'':12s} speed-up {one.median_s / found[0].median_s:.2f} of {workers}")
    for workers in options.workers if options.pca else []:
        shared = objectives_of(f"pca:{options.pca}", "pca", workers, 1e-4, folder)
        least = least_value(shared)
        below = Goal(
            figure="primal", least=least, tolerance=1e-6 * abs(least), epochs=options.epochs
        )
        pair = ["dis_dfsdca", "asysvrg"]
        note("pca", compare("pca", pair, shared, below, timing, options.draws))
    if options.json is not None:
        options.json.write_text(json.dumps(out, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
