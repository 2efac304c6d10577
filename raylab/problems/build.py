"""From the name of a problem to the objective of one worker's rows."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from raylab.data.rows import RowSource
from raylab.errors import ConfigError, DataError
from raylab.problems.objective import DualObjective, Shard

__all__ = ["PROBLEMS", "build", "check", "options_of", "shards"]

# per problem: its options and what they are where nothing is given
_OPTIONS: dict[str, dict[str, float]] = {
    "ridge": {},
    "logistic": {},
    "smoothed_hinge": {"gamma": 1.0},
    "pca": {"mu": 100.0, "seed": 0},
    "softmax_mlp": {"hidden": 100, "seed": 0},
}
PROBLEMS = tuple(_OPTIONS)
"""The names that `build` takes."""


def options_of(problem: str) -> dict[str, float]:
    """Return the options of a problem, and what they are where nothing is given.

    Raises:
        ConfigError: there is no such problem.
    """
    if problem not in _OPTIONS:
        known = ", ".join(PROBLEMS)
        raise ConfigError(f"`problem` must be one of {known}, but got {problem!r}")
    return dict(_OPTIONS[problem])


def shards(n: int, workers: int) -> list[Shard]:
    """Divide n rows among workers: contiguous shards whose sizes differ by at most one.

    >>> [(shard.lo, shard.hi) for shard in shards(10, 3)]
    [(0, 3), (3, 6), (6, 10)]

    Raises:
        ConfigError: there are more workers than rows, or no worker.
    """
    if not 1 <= workers <= n:
        raise ConfigError(
            f"every worker must have at least one of the rows, but got workers={workers}, n={n}; "
            "give fewer workers"
        )
    cuts = [worker * n // workers for worker in range(workers + 1)]
    return [Shard(lo=lo, hi=hi, n=n) for lo, hi in itertools.pairwise(cuts)]


def check(problem: str, source: RowSource, *, strength: float, **options: Any) -> dict[str, float]:
    """Check a problem and its data without reading rows; return all its options.

    Raises:
        ConfigError: the problem or an option is unknown, or a number is out of its range.
        DataError: the data is not of the problem's kind.
    """
    known = options_of(problem)
    for key in options:
        if key not in known:
            raise ConfigError(
                f"the options of {problem} are {', '.join(known) or 'none'}, but got {key!r}"
            )
    numbers = {"strength": strength} | known | options
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise ConfigError(f"`{key}` must be a finite number, but got {value!r}")
    if strength <= 0.0 and problem != "softmax_mlp":
        raise ConfigError(
            f"`strength` (λ) must be above 0 for {problem}, whose w is Σ α_i/(λn), "
            f"but got {strength}"
        )
    if strength < 0.0:
        raise ConfigError(f"`strength` (λ) must not be below 0, but got {strength}")
    if "gamma" in known and not numbers["gamma"] > 0.0:
        raise ConfigError(f"`gamma` must be above 0, but got {numbers['gamma']}")
    if "hidden" in known and (numbers["hidden"] % 1 or numbers["hidden"] < 1):
        raise ConfigError(f"`hidden` must be a whole number >= 1, but got {numbers['hidden']}")
    if "seed" in known and (numbers["seed"] % 1 or not 0 <= numbers["seed"] < 2**32):
        raise ConfigError(f"`seed` must be a whole number in [0, 2**32), but got {numbers['seed']}")
    if problem == "pca" and not numbers["mu"] > strength:
        raise ConfigError(
            f"`mu > strength` must hold, but got (mu={numbers['mu']}, strength={strength})"
        )
    _check_classes(problem, source)
    return {key: numbers[key] for key in known}


def build(
    problem: str,
    source: RowSource,
    shard: Shard,
    *,
    strength: float,
    signs: bool = False,
    **options: Any,
) -> DualObjective:
    """Return the objective of one shard, on the rows that the source gives for it.

    Ridge, logistic and smoothed hinge are `LinearObjective`s.

    Args:
        problem: one of `PROBLEMS`.
        source: of the rows: n of them.
        shard: which of them.
        strength: λ, above 0; for `softmax_mlp` 0 is allowed too.
        signs: regress labels of two classes as -1 and 1, whatever they are.
        options: `gamma` of smoothed_hinge, the length of its quadratic part, default 1; `mu` of
            pca, default 100, and `seed` of its b, default 0; `hidden` units of softmax_mlp, default
            100, and `seed` of its initial weights, default 0.

    Raises:
        ConfigError: the problem or an option is unknown, or a number is out of its range.
        DataError: the data is not of the problem's kind, or cannot be read.
    """
    settings = check(problem, source, strength=strength, **options)
    block = source.block(shard.lo, shard.hi)
    if signs:
        block = replace(block, coding=None)
    # Here, because they bring in numba, which is slow to import.
    if problem == "pca":
        from raylab.problems.pca import Pca

        return Pca(block, shard, strength=strength, mu=settings["mu"], seed=int(settings["seed"]))
    if problem == "softmax_mlp":
        from raylab.problems.softmax_mlp import SoftmaxMlp

        return SoftmaxMlp(
            block,
            shard,
            strength=strength,
            hidden=int(settings["hidden"]),
            classes=source.classes,
            seed=int(settings["seed"]),
        )
    from raylab.problems.kernels import HINGE, LOGISTIC, RIDGE
    from raylab.problems.linear import LinearModel, Loss

    code = {"ridge": RIDGE, "logistic": LOGISTIC, "smoothed_hinge": HINGE}[problem]
    loss = Loss(code=code, gamma=settings.get("gamma", 1.0))
    return LinearModel(block, shard, strength=strength, loss=loss)


def _check_classes(problem: str, source: RowSource) -> None:
    classes = source.classes
    if problem in ("logistic", "smoothed_hinge") and classes != 2:
        raise DataError(
            f"{problem} needs labels of two classes, but those of {source.name} have "
            f"{classes or 'no'} classes; ridge takes any number as a label"
        )
    if problem == "softmax_mlp" and classes < 2:
        raise DataError(
            f"softmax_mlp needs labels of two classes or more, but those of {source.name} have "
            f"{classes or 'no'} classes; ridge takes any number as a label"
        )
