"""Claim: workers that push stale policy gradients of their own episodes learn CartPole-v1: a mean
return of 475 or more over 100 episodes within 200,000 steps of its environments.

    python -m benchmarks.cartpole           # under a virtual clock
    python -m benchmarks.cartpole --ray     # a server and workers on Ray's actors

Seeds 0, 1, 2 with 1, 2 and 4 workers. In the virtual clock a gradient takes 1 ms and a step of an
environment 20 µs: the same messages meet the same staleness each time. On actors they come as they
come. Training stops at the first certificate (every 10,000 steps) whose 100 greedy episodes have a
mean of the target, by default 485, and is then measured on 100 others. Control: the same policy
before training. The exit status is 1 if a policy stays below 475 on these others.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.train import RunConfig

from actors.server.ends import Ends
from benchmarks.session import ray_session
from raylab import ParameterServerTrainer
from raylab.algorithms.server.policy_gradient import PolicyServer, PolicySettings
from raylab.algorithms.server.policy_worker import PolicyWorker
from raylab.problems.cartpole import greedy_returns
from raylab.simulator import Timing, run_rules

STEPS = 200_000
CERTIFY_STEPS = 10_000
OTHERS = 1_000_003  # seed of the episodes that nothing was chosen by
ENOUGH = 475.0

Rows = list[dict[str, Any]]

TIMING = Timing(message_s=1e-3, sample_s=2e-5, latency_s=0.0, bytes_per_s=float("inf"))


def mean_return(settings: PolicySettings, w: torch.Tensor) -> float:
    """Return the mean return of the greedy policy over 100 episodes of its own."""
    network = settings.network()

    @torch.no_grad()
    def policy(observations: NDArray[np.float32]) -> NDArray[np.int64]:
        chosen: NDArray[np.int64] = (
            network.policy(w, torch.from_numpy(observations)).argmax(dim=1).numpy()
        )
        return chosen

    return float(np.mean(greedy_returns(policy, 100, seed=OTHERS + settings.seed)))


def in_virtual_time(settings: PolicySettings) -> tuple[Rows, Mapping[str, torch.Tensor]]:
    """Train under the virtual clock; return the rows and the weights."""
    ends = Ends(samples=STEPS, figure="shortfall", tolerance=1e-9, certify_samples=CERTIFY_STEPS)
    found = run_rules(
        PolicyServer(settings),
        functools.partial(PolicyWorker, settings),
        settings.workers,
        ends,
        timing=TIMING,
    )
    return found.rows, found.model


def on_actors(settings: PolicySettings) -> tuple[Rows, Mapping[str, torch.Tensor]]:
    """Train on actors of the Ray that runs; return the rows and the weights."""
    with tempfile.TemporaryDirectory() as folder:
        result = ParameterServerTrainer(
            "cartpole",
            method="asysgd",
            workers=settings.workers,
            options={"target": settings.target},
            seed=settings.seed,
            resources_per_worker={"CPU": 0.2},
            run_config=RunConfig(storage_path=folder, name="cartpole"),
        ).fit(epochs=STEPS / CERTIFY_STEPS, tolerance=1e-9, certify_every=1.0, progress=False)
        return result.table.to_pylist(), result.weights


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--target", type=float, default=485.0)
    parser.add_argument("--ray", action="store_true", help="on actors, not in virtual time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.ray:
        with ray_session(2):
            returns = [row_of(on_actors, each) for each in _all_settings(options)]
    else:
        returns = [row_of(in_virtual_time, each) for each in _all_settings(options)]
    sys.exit(0 if min(returns) >= ENOUGH else 1)


def _all_settings(options: argparse.Namespace) -> list[PolicySettings]:
    print(
        "| workers | seed | before | steps | updates | staleness, mean (max) | certificate "
        "| 100 other episodes | last 100 of training | time |"
    )
    print("|" + " --- |" * 10)
    return [
        PolicySettings(workers=workers, seed=seed, target=options.target)
        for workers in options.workers
        for seed in options.seeds
    ]


def row_of(
    train: Callable[[PolicySettings], tuple[Rows, Mapping[str, torch.Tensor]]],
    settings: PolicySettings,
) -> float:
    """Train, print a row of the table, and return the mean return on the other episodes."""
    before = mean_return(settings, settings.network().initial(settings.seed))
    began = time.perf_counter()
    rows, model = train(settings)
    took = time.perf_counter() - began
    counts = [row["staleness_counts"] for row in rows]
    updates = sum(sum(each) for each in counts)
    stale = sum(s * c for each in counts for s, c in enumerate(each)) / updates
    after = mean_return(settings, model["w"])
    last = rows[-1]
    print(
        f"| {settings.workers} | {settings.seed} | {before:.0f} | {last['samples_seen']:,} "
        f"| {updates:,} | {stale:.1f} ({max(len(each) for each in counts) - 1}) "
        f"| {last['greedy_return']:.1f} | {after:.1f} "
        f"| {last['mean_return']:.0f} | {took:.0f} s |",
        flush=True,
    )
    return after


if __name__ == "__main__":
    main()
