"""Claim: with as many training steps in all, TPE with ASHA finds a better validation loss than
random search; and reuse keeps what a trial costs beside its training small.

    python -m benchmarks.tuning --storage runs/tuning --seeds 0 1 2 3 4

Both search the space of `tune_configs/adl_digits.yaml`, or another search's. TPE with ASHA is given
its trials; the steps that they have trained together are the budget. Random search trains every
trial to its end, and takes its trials in order until that budget is spent: the last one is given
the rest of its steps for nothing. The loss is that of the best trial that has trained to its end;
the table has the median over the seeds, and all of them.

Of every trial the search knows the seconds that were training and testing, and the others: its
process, its actors, data and files. The first trial starts all of its processes, a later one takes
over those that are there where it needs as many: the last line has the median of both kinds, and
the share that starting has of all.

A search that is there is not run again, one that was interrupted goes on, so the command may be
stopped and given again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from raylab.cli.main import main as raylab
from raylab.cli.session import ray_session
from raylab.drivers.cluster import connect
from raylab.drivers.tuning.study import TuningStudy


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of searching.

    Args:
        name: of its folders.
        title: of its row.
        words: key=value of the search.
    """

    name: str
    title: str
    words: tuple[str, ...]


GUIDED = Arm(
    name="tpe-asha", title="TPE with ASHA", words=("search.algorithm=tpe", "scheduler.name=asha")
)
RANDOM = Arm(
    name="random",
    title="random search",
    words=("search.algorithm=random", "scheduler.name=none"),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has come to within a budget of steps.

    Args:
        loss: of its best trial that has trained to its end.
        trials: that the budget has paid for.
        steps: that they have trained.
    """

    loss: float
    trials: int
    steps: int


def searched(search: str, arm: Arm, seed: int, trials: int, storage: Path) -> TuningStudy:
    """Carry out a search, or what is left of it, and return its study."""
    folder = storage / f"{arm.name}-seed{seed}"
    words = [
        *(search, *arm.words, f"search.seed={seed}", f"train.seed={seed}", "search.start_from=[]"),
        *(f"budget.trials={trials}", f"storage={storage}", f"name={folder.name}"),
    ]
    if (folder / "study.db").exists():
        words = ["--resume", str(folder)]
    if not (folder / "result.json").exists() and raylab(["tune", *words, "--quiet"]):
        raise RuntimeError(f"the search in {folder} has found nothing")
    return TuningStudy.open(folder)


def within(study: TuningStudy, steps: int | None) -> Found:
    """Return what the trials come to that begin within a budget of steps; None: all of them."""
    spent, taken, losses = 0, 0, []
    for trial in study.trials():
        if steps is not None and spent >= steps:
            break
        taken += 1
        spent += trial.user_attrs.get("steps", 0)
        if trial.state == TrialState.COMPLETE:
            losses.append(trial.values[0])
    return Found(loss=min(losses, default=float("inf")), trials=taken, steps=spent)


def enough(study: TuningStudy, trials: int) -> int:
    """Return how many trials to their end take the steps of a search, and one for those that
    diverge.
    """
    budget = within(study, None).steps
    longest = max(trial.user_attrs.get("steps", 0) for trial in study.trials())
    return min(trials, 1 + -(-budget // longest))


def starts(trials: Sequence[FrozenTrial]) -> tuple[float, float, float]:
    """Return the seconds of starting the first trial, their median of the later ones, and the share
    that starting has of all.
    """
    start_s = [trial.user_attrs["start_s"] for trial in trials if "start_s" in trial.user_attrs]
    train_s = sum(trial.user_attrs.get("train_s", 0.0) for trial in trials)
    first, *later = start_s
    whole = sum(start_s) + train_s
    return first, statistics.median(later) if later else float("nan"), sum(start_s) / whole


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--search", default="adl_digits", help="a search that ships, or a file")
    parser.add_argument("--trials", type=int, default=32, help="of TPE with ASHA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--storage", type=Path, required=True, help="folder of the searches")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return its exit code."""
    options = parsed(arguments)
    found: dict[str, list[Found]] = {GUIDED.name: [], RANDOM.name: []}
    times: list[tuple[float, float, float]] = []
    with ray_session():
        connect()  # a Ray of its own, as `raylab tune` starts, for all of the searches
        for seed in options.seeds:
            guided = searched(options.search, GUIDED, seed, options.trials, options.storage)
            found[GUIDED.name].append(within(guided, None))
            times.append(starts(guided.trials()))
            budget = found[GUIDED.name][-1].steps
            enough_of = enough(guided, options.trials)
            drawn = searched(options.search, RANDOM, seed, enough_of, options.storage)
            found[RANDOM.name].append(within(drawn, budget))
            for arm in (GUIDED, RANDOM):
                each = found[arm.name][-1]
                print(f"seed {seed}, {arm.title}: {each}", file=sys.stderr, flush=True)
    print("| search | trials | steps | loss, median | loss, by seed |")
    print("| --- | --- | --- | --- | --- |")
    for arm in (GUIDED, RANDOM):
        of = found[arm.name]
        print(
            f"| {arm.title} | {statistics.median(each.trials for each in of):g} "
            f"| {statistics.median(each.steps for each in of):g} "
            f"| {statistics.median(each.loss for each in of):.4f} "
            f"| {', '.join(f'{each.loss:.4f}' for each in of)} |"
        )
    first, later, share = (statistics.median(each) for each in zip(*times, strict=True))
    print(
        f"\nStarting: {first:.1f} s of the first trial, {later:.2f} s of a later one (medians of "
        f"the seeds); {100 * share:.0f} % of all seconds of the trials"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
