"""`TuningConfig`: what `raylab tune` searches, how, and how long.

train: {method: dasgd, data: digits, workers: 2, epochs: 4}   as raylab train takes it
space: {lr: {uniform: [0.001, 1.0], log: true}}               see `domain.py`
objectives: [{metric: test_loss}]                             see `objectives.py`
search: {algorithm: tpe, seed: 0, start_from: [{lr: 0.1}]}
scheduler: {name: asha, grace: 1, reduction: 3}
budget: {trials: 32, minutes: 10}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raylab.config.domain import Domain
from raylab.config.families import Family
from raylab.config.objectives import Objective, objectives_of
from raylab.config.parse import checked, run_config
from raylab.config.space import base_of, family_of_space, space_of
from raylab.config.tuning_keys import BudgetConfig, SchedulerConfig, SearchConfig, TuningKeys
from raylab.documents import shown
from raylab.errors import ConfigError

__all__ = ["TuningConfig", "tuning_config"]

_DEFAULT_TRIALS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    """A search, with everything in it checked; made by `tuning_config`.

    Args:
        family: of the runs.
        train: keys of the runs.
        space: domains, each behind those that it depends on.
        objectives: the first one leads.
        search: how the next point is chosen.
        scheduler: which trials are ended early; its name is none or one of them.
        budget: when the search ends; there is one.
        concurrent: trials at once; None: as the cluster has room.
        retries: of a trial.
        storage: of the tuning's folder.
        name: of the tuning's folder; None: one with the time in it.
        given: the space and the objectives as YAML has them.
    """

    family: Family
    train: Mapping[str, Any]
    space: tuple[Domain, ...]
    objectives: tuple[Objective, ...]
    search: SearchConfig
    scheduler: SchedulerConfig
    budget: BudgetConfig
    concurrent: int | None
    retries: int
    storage: str
    name: str | None
    given: Mapping[str, Any]

    @property
    def base(self) -> dict[str, Any]:
        """The keys of a run with nothing chosen but a method."""
        return base_of(self.given, self.train)

    def plain(self) -> dict[str, Any]:
        """Return all keys as a file has them; `tuning_config` makes the same of them."""
        return {
            "train": dict(self.train),
            "space": dict(self.given),
            "objectives": [each.plain() for each in self.objectives],
            "search": self.search.model_dump(),
            "scheduler": self.scheduler.model_dump(),
            "budget": self.budget.model_dump(),
            "concurrent": self.concurrent,
            "retries": self.retries,
            "storage": self.storage,
            "name": self.name,
        }


def tuning_config(values: Mapping[str, Any]) -> TuningConfig:
    """Return the validated configuration of a search.

    >>> tuning_config({
    ...     "train": {"method": "dasgd"},
    ...     "space": {"tau": {"int": [1, 8]}, "delay": {"int": [0, 7], "below": "tau"}},
    ...     "objectives": [{"metric": "test_loss"}],
    ... }).scheduler.name
    'asha'

    Raises:
        ConfigError: a key is unknown, a value of the wrong type or out of its range, or two do not
            go together.
    """
    keys = checked(TuningKeys, values)
    for own in ("storage", "name"):
        if own in keys.train:
            raise ConfigError(
                f"a tuning gives its runs their folders, but got train.{own}: say {own}= of the "
                "tuning itself"
            )
    run_config(base_of(keys.space, keys.train))
    space = space_of(keys.space, keys.train)
    family = family_of_space({each.key: each for each in space}, keys.train)
    objectives = objectives_of(keys.objectives, family.name)
    search = checked(SearchConfig, keys.search, "search.")
    _check_search(search, space, objectives)
    budget = checked(BudgetConfig, keys.budget, "budget.")
    if budget.trials is None and budget.minutes is None:
        budget = budget.model_copy(update={"trials": _DEFAULT_TRIALS})
    return TuningConfig(
        family=family,
        train=keys.train,
        space=space,
        objectives=objectives,
        search=search,
        scheduler=_scheduler(checked(SchedulerConfig, keys.scheduler, "scheduler."), objectives),
        budget=budget,
        concurrent=keys.concurrent,
        retries=keys.retries,
        storage=keys.storage,
        name=keys.name,
        given=keys.space,
    )


def _scheduler(scheduler: SchedulerConfig, objectives: tuple[Objective, ...]) -> SchedulerConfig:
    one = len(objectives) == 1 and objectives[0].until is None
    if scheduler.name is None:
        scheduler = scheduler.model_copy(update={"name": "asha" if one else "none"})
    if scheduler.name == "none":
        return scheduler
    if not one:
        raise ConfigError(
            f"a scheduler judges by one objective that every report has, but got scheduler.name="
            f"{scheduler.name} with {', '.join(each.name for each in objectives)}: leave it out"
        )
    if scheduler.name == "asha" and scheduler.unit != "epoch" and scheduler.most is None:
        raise ConfigError(
            f"asha must know how much {scheduler.unit} a whole trial takes, but got scheduler.most="
            f"null with scheduler.unit={scheduler.unit}: give most, or leave unit out"
        )
    return scheduler


def _check_search(
    search: SearchConfig, space: tuple[Domain, ...], objectives: tuple[Objective, ...]
) -> None:
    if search.algorithm == "cmaes" and len(objectives) > 1:
        raise ConfigError(
            f"cmaes has one objective, but got {', '.join(each.name for each in objectives)}: say "
            "search.algorithm=tpe or nsga2"
        )
    by_key = {each.key: each for each in space}
    for point in search.start_from:
        for key, value in point.items():
            if key not in by_key:
                raise ConfigError(
                    f"a point of `search.start_from` must be of the space's keys, "
                    f"{', '.join(by_key)}, but got {key}: leave it out, or put it into the space"
                )
            if not by_key[key].holds(value):
                raise ConfigError(
                    f"a point of `search.start_from` must be in the space, but got {key}="
                    f"{shown(value)}: it is {_said(by_key[key])}"
                )
            below = by_key[key].below
            other = point.get(below) if below in by_key else None
            if other is not None and not value < other:
                raise ConfigError(
                    f"`{key}` must be below {below}, but a point of `search.start_from` has "
                    f"{key}={shown(value)} and {below}={shown(other)}"
                )


def _said(domain: Domain) -> str:
    if domain.kind == "choice":
        return f"one of {', '.join(map(shown, domain.choices))}"
    low, high = domain.ends
    return f"between {low} and {high}" + (", whole" if domain.kind == "int" else "")
