"""Optuna's samplers, each trial's draws keyed by the seed and the trial.

So a search that is resumed draws what it would have drawn, and never what it has drawn before.
"""

from __future__ import annotations

import warnings

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler

from raylab.config.tuning_keys import SearchConfig

__all__ = ["sampler_of"]

_POPULATION = 16
"""Of NSGA-II: Optuna's 50 would be the whole of most searches of runs."""


def sampler_of(search: SearchConfig, trial: int) -> BaseSampler:
    """Return the sampler of one trial. What it knows of the others it reads from the study.

    Args:
        search: the algorithm and the seed.
        trial: how many have begun before it.
    """
    seed = int(np.random.SeedSequence([search.seed, trial]).generate_state(1)[0])
    if search.algorithm == "random":
        return RandomSampler(seed=seed)
    if search.algorithm == "nsga2":
        return NSGAIISampler(seed=seed, population_size=_POPULATION)
    if search.algorithm == "cmaes":
        # A key with a condition is drawn by itself: it is no coordinate of a fixed space.
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Those that run count as bad: several at a time do not all go to one place.
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
