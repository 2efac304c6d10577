"""Claim: with stragglers, workers that wait for nobody reach a duality gap sooner than rounds do.

    python -m benchmarks.stragglers OUT ijcnn1=PATH a9a=PATH mushrooms=PATH covtype=PATH
        [--workers 4 8 16] [--draws 5] [--pca n=20000,d=100] [--one] [--table]

Dis-dfSDCA against CoCoA+ on ridge (HUO Fig. 6), Dis-dfSDCA against AsySVRG on (3.40) (Fig. 8), and
Dis-dfSDCA's speed-up against workers (Fig. 7), all with the papers' stragglers (p = 0.2, up to ten
times). Time is virtual: the product's server, workers and rules under `raylab.simulator`, 100 µs
a sample, 100 µs a message, 1 Gbit/s; options change that. `arrival.py` says what arriving is.

A method is tuned over its messages' size and its step, coarsely and then finely, on the first draw
of delays; its three best choices meet all draws, which are the same for all methods, and the one
with the least median counts. Every (set, K, method, draw) has a file of its own in OUT, so that a
benchmark that is given again makes only what is missing; `--table` prints what there is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.arrival import Arrival, Goal, arrival
from raylab.algorithms.server.rule_factory import ServerSettings, auto_eta
from raylab.algorithms.server.stragglers import parse
from raylab.data import open_rows
from raylab.problems import Objective, build, shards
from raylab.simulator import Timing

STRAGGLER = "paper:p=0.2,times=10"
_FINALISTS = 3
_SLOWER = 1.2
"""Times the best, at which a choice is given up."""

Choice = dict[str, Any]


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


@dataclass
class Search:
    """A method's choices, and how long each takes with the first draw of the delays."""

    run: Callable[[Choice, float], Arrival]
    tried: list[tuple[Choice, Arrival]] = field(default_factory=list)

    def look(self, choice: Choice) -> None:
        """Try a choice, unless it has been."""
        if all(choice != each for each, _ in self.tried):
            self.tried.append((choice, self.run(choice, _SLOWER * self.best_s)))

    @property
    def ranked(self) -> list[Choice]:
        """The choices that have arrived, the soonest first."""
        there = [(found.time_s, k) for k, (_, found) in enumerate(self.tried)]
        return [self.tried[k][0] for time_s, k in sorted(there) if time_s < math.inf]

    @property
    def best_s(self) -> float:
        """The least time so far."""
        return min((found.time_s for _, found in self.tried), default=math.inf)


def search(method: str, base: ServerSettings, run: Callable[[Choice, float], Arrival]) -> Search:
    """Try sizes of messages and steps, first far apart and then around the best."""
    found = Search(run)
    for scales in ((1.0, 0.5, 2.0, 0.25, 4.0, 0.1, 10.0, 0.03), (0.7, 1.4)):
        around = found.ranked[0] if found.ranked else None
        for scale in scales:
            for choice in _choices(method, base, scale, around):
                found.look(choice)
    if method == "dis_dfsdca" and found.ranked and base.workers > 1:
        found.look({**found.ranked[0], "broadcast": base.workers})
    return found


def _choices(
    method: str, base: ServerSettings, scale: float, around: Choice | None
) -> Iterator[Choice]:
    """Yield choices with messages so many times as long as those of `around` or the usual ones."""
    shard = base.n // base.workers
    if method == "asysvrg":
        if around is None and scale == 1.0:
            for batch, inner, times in itertools.product((8, 64), (20, 200), (1.0, 2.0)):
                eta = times * auto_eta(replace(base, batch=batch))
                yield {"batch": batch, "inner": inner, "eta": eta}
        return
    usual = base.message_samples if method == "dis_dfsdca" else max(1, shard // 30)
    middle = usual if around is None else around["local_steps"]
    size = min(shard, max(1, round(scale * middle)))
    if method == "cocoa_plus":
        yield {"local_steps": size}
        return
    auto = auto_eta(replace(base, local_steps=size))
    for eta in (auto, min(1.8 * auto, 0.9 / base.lambda_n)):
        yield {"local_steps": size, "eta": eta}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the results of one method with so many workers lie.

    Args:
        folder: of them.
        objectives: one a worker; made when there is something to compute.
        goal: to be reached; made likewise.
        timing: of the machine.
        draws: of the delays.
    """

    folder: Path
    objectives: Callable[[], Sequence[Objective]]
    goal: Callable[[], Goal]
    timing: Timing
    draws: int

    def fill(self, method: str) -> None:
        """Compute what is missing."""
        tuned = self.folder / "tuned.json"
        files = [self._draw(draw) for draw in range(self.draws)]
        if tuned.exists() and all(file.exists() for file in files):
            return
        objectives, goal = self.objectives(), self.goal()
        base = settings_of(method, objectives)

        def run(choice: Choice, before_s: float, draw: int = 0) -> Arrival:
            settings = replace(base, **choice)
            delays = parse(STRAGGLER, draw)
            return arrival(settings, objectives, goal, self.timing, delays, before_s)

        if not tuned.exists():
            found = search(method, base, run)
            tried = [{"choice": choice, **vars(each)} for choice, each in found.tried]
            _write(tuned, {"usual": base.message_samples, "tried": tried, "ranked": found.ranked})
        finalists = json.loads(tuned.read_text())["ranked"][:_FINALISTS]
        for draw, file in enumerate(files):
            if not file.exists():
                times = [vars(run(choice, math.inf, draw)) for choice in finalists]
                _write(file, {"choices": finalists, "arrivals": times})

    def best(self) -> tuple[float, Choice, float, int] | None:
        """Return the least median of the times, its choice, its epochs, and how many draws it is
        of; None where nothing is there.
        """
        files = [self._draw(draw) for draw in range(self.draws)]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
        if not found or not found[0]["choices"]:
            return None
        # Of another tuning there may be draws left.
        found = [draw for draw in found if draw["choices"] == found[0]["choices"]]
        ranked = []
        for k, choice in enumerate(found[0]["choices"]):
            each = [draw["arrivals"][k] for draw in found]
            epochs = statistics.median(one["epochs"] for one in each)
            ranked.append((statistics.median(one["time_s"] for one in each), k, choice, epochs))
        time_s, _, choice, epochs = min(ranked)
        return time_s, choice, epochs, len(found)

    def _draw(self, draw: int) -> Path:
        return self.folder / f"draw-{draw}.json"


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    aside.replace(path)


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


def show(name: str, workers: int, methods: Sequence[str], out: Path, draws: int) -> None:
    """Print a row of the table: both methods' medians, their ratio and their choices."""
    found = []
    for method in methods:
        place = Place(
            folder=out / name / f"K{workers}" / method,
            objectives=list,
            goal=lambda: Goal(tolerance=0.0),
            timing=Timing(),
            draws=draws,
        )
        found.append(place.best())
    if any(each is None for each in found):
        return
    cells = [name, str(workers)]
    for each in found:
        if each is not None:
            cells += [f"{each[0]:.3g}", f"{each[2]:.3g}"]
    if len(found) > 1 and found[0] is not None and found[1] is not None:
        cells.append(f"**{found[1][0] / found[0][0]:.2f}**")
    words = []
    for each in found:
        if each is not None:
            of = "" if each[3] == draws else f" ({each[3]} draws)"
            words.append(" ".join(f"{k}={v:.3g}" for k, v in each[1].items()) + of)
    print("| " + " | ".join([*cells, "; ".join(words)]) + " |", flush=True)


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("data", nargs="*", help="NAME=PATH of LIBSVM files")
    parser.add_argument("--workers", nargs="*", type=int, default=[4, 8, 16])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--strength", type=float, default=0.1, help="lambda of ridge")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="duality gap of ridge")
    parser.add_argument("--epochs", type=float, default=400.0)
    parser.add_argument("--sample-us", type=float, default=100.0)
    parser.add_argument("--latency-us", type=float, default=100.0)
    parser.add_argument("--pca", default="", help="n=N,d=D[,seed=S] of generated rows; empty: none")
    parser.add_argument("--one", action="store_true", help="Dis-dfSDCA only: for its speed-up")
    parser.add_argument("--folder", type=Path, help="of the rows, mapped from there")
    parser.add_argument("--table", action="store_true", help="compute nothing")
    options = parser.parse_args()
    timing = Timing(sample_s=options.sample_us * 1e-6, latency_s=options.latency_us * 1e-6)
    folder = options.folder or Path(tempfile.gettempdir()) / "raylab-rows"
    work = [(*data.partition("=")[::2], "ridge") for data in options.data]
    if options.pca:
        work.append(("pca", options.pca, "pca"))
    for workers, (name, path, problem) in itertools.product(options.workers, work):
        rival = "cocoa_plus" if problem == "ridge" else "asysvrg"
        methods = ["dis_dfsdca"] if options.one else ["dis_dfsdca", rival]
        made: list[Objective] = []

        def objectives(
            made: list[Objective] = made,
            problem: str = problem,
            path: str = path,
            workers: int = workers,
        ) -> Sequence[Objective]:
            spec = f"libsvm:{path}" if problem == "ridge" else f"pca:{path}"
            strength = options.strength if problem == "ridge" else 1e-4
            if not made:
                made.extend(objectives_of(spec, problem, workers, strength, folder))
            return made

        def goal(
            objectives: Callable[[], Sequence[Objective]] = objectives, problem: str = problem
        ) -> Goal:
            if problem == "ridge":
                return Goal(tolerance=options.tolerance, epochs=options.epochs)
            least = least_value(objectives())
            return Goal(tolerance=1e-6 * abs(least), least=least, epochs=options.epochs)

        for method in methods if not options.table else []:
            Place(
                folder=options.out / name / f"K{workers}" / method,
                objectives=objectives,
                goal=goal,
                timing=timing,
                draws=options.draws,
            ).fill(method)
        show(name, workers, methods, options.out, options.draws)


if __name__ == "__main__":
    main()
