"""The keys of a tuning's file, of which `raylab tune --help` makes its table.

Each is checked by itself here; whether they go together, by `tuning_config`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raylab.config.kinds import Count, Natural, Positive, Text

__all__ = ["BudgetConfig", "SchedulerConfig", "SearchConfig", "TuningKeys"]


class _Keys(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class SearchConfig(_Keys):
    """How the next point is chosen."""

    algorithm: Literal["tpe", "cmaes", "nsga2", "random"] = Field(
        "tpe",
        description="of Optuna: tpe, for anything; cmaes, for numbers, one objective; nsga2, for "
        "several objectives; random",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of all draws")
    start_from: list[dict[str, Any]] = Field(
        [], description="points to begin with; keys that one leaves out are chosen"
    )


class SchedulerConfig(_Keys):
    """Which trials are ended early, by their reports while they train."""

    name: Literal["asha", "median", "none"] | None = Field(
        None,
        description="asha: those that are not among the best 1/reduction at grace, grace * "
        "reduction, ...; median: those whose best is worse than the median of the others' means; "
        "null: asha, and none for several objectives or an until",
    )
    unit: Literal["epoch", "step", "time_s"] = Field(
        "epoch", description="column that grace and most are in"
    )
    grace: Positive = Field(1.0, description="that every trial is given")
    reduction: Annotated[float, Field(gt=1)] = Field(
        3.0, description="of asha, one of so many goes on"
    )
    most: Positive | None = Field(
        None, description="of asha, what a whole trial takes; null: the epochs of the runs"
    )
    others: Count = Field(3, description="of median, trials to compare with at least")


class BudgetConfig(_Keys):
    """When a search ends."""

    trials: Count | None = Field(
        None, description="to begin, in all; null: 32, or any number if there are minutes"
    )
    minutes: Positive | None = Field(
        None, description="of searching, in all; trials end at their next report then"
    )


class TuningKeys(_Keys):
    """All keys of a tuning's file."""

    train: dict[str, Any] = Field({}, description="keys of the runs, as raylab train has them")
    space: dict[str, Any] = Field(
        {}, description="by key of a run, what it may be: uniform, int or choice"
    )
    objectives: list[dict[str, Any]] = Field(
        [], description="columns of the runs' rows, the first one leads"
    )
    search: dict[str, Any] = Field({}, description="how the next point is chosen")
    scheduler: dict[str, Any] = Field({}, description="which trials are ended early")
    budget: dict[str, Any] = Field({}, description="trials and minutes")
    concurrent: Count | None = Field(
        None, description="trials at once; null: as the cluster has room"
    )
    retries: Natural = Field(
        1, description="times that a trial that failed goes on from its last checkpoint"
    )
    storage: Text = Field("~/raylab_results", description="local folder of the tuning's folder")
    name: Text | None = Field(None, description="of the tuning's folder; null: tune-<time>")
