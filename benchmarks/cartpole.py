"""Claim: workers that push stale policy gradients of their own episodes learn CartPole-v1: a mean
return of 475 or more over 100 episodes within 200,000 steps of its environments.

    python -m benchmarks.cartpole

Seeds 0, 1, 2 with 1, 2 and 4 workers, under a virtual clock in which a gradient takes 1 ms and a
step of an environment 20 µs: the same messages meet the same staleness each time. Training stops at
the first certificate (every 10,000 steps) whose 100 greedy episodes have a mean of the target, by
default 485, and is then measured on 100 others. Control: the same policy before training.
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch
from numpy.typing import NDArray

from actors.server.loop import Ends
from raylab.algorithms.server.policy_gradient import PolicyServer, PolicySettings
from raylab.algorithms.server.policy_worker import PolicyWorker
from raylab.problems.cartpole import greedy_returns
from raylab.simulator import Timing, run_rules

STEPS = 200_000
OTHERS = 1_000_003  # seed of the episodes that nothing was chosen by


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


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--target", type=float, default=485.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| workers | seed | before | steps | updates | staleness, mean (max) | certificate "
        "| 100 other episodes | last 100 of training | time |"
    )
    print("|" + " --- |" * 10)
    for workers in options.workers:
        for seed in options.seeds:
            settings = PolicySettings(workers=workers, seed=seed, target=options.target)
            before = mean_return(settings, settings.network().initial(seed))
            ends = Ends(samples=STEPS, figure="shortfall", tolerance=1e-9, certify_samples=10_000)
            began = time.perf_counter()
            found = run_rules(
                PolicyServer(settings),
                functools.partial(PolicyWorker, settings),
                workers,
                ends,
                timing=TIMING,
            )
            took = time.perf_counter() - began
            row = found.figures
            counts = [row["staleness_counts"] for row in found.rows]
            updates = sum(sum(each) for each in counts)
            stale = sum(s * c for each in counts for s, c in enumerate(each)) / updates
            print(
                f"| {workers} | {seed} | {before:.0f} | {row['samples_seen']:,} | {updates:,} "
                f"| {stale:.1f} ({max(len(each) for each in counts) - 1}) "
                f"| {row['greedy_return']:.1f} | {mean_return(settings, found.model['w']):.1f} "
                f"| {row['mean_return']:.0f} | {took:.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
