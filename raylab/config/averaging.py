"""`AveragingConfig`: every key of an averaging run: type, range and default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raylab.config.kinds import Count, Natural, NotNegative, Positive, Share, Text
from raylab.config.pipeline import PipelineConfig

__all__ = ["AVERAGING_MACHINE", "AVERAGING_METHODS", "AveragingConfig", "AveragingSimulationConfig"]

AVERAGING_METHODS = {
    "minibatch_sgd": "mini-batch SGD: the mean of all workers' gradients at every step, a baseline",
    "local_sgd": "Local SGD: the mean of all workers' weights every tau steps",
    "dasgd": "DaSGD: Local SGD whose mean comes d steps later, so that nobody waits for it",
}
"""The averaging methods, a line each."""


def _shared(name: str) -> Any:
    """Return a key that a pipeline has, too, with its default and its description."""
    rule = PipelineConfig.model_fields[name]
    return Field(rule.default, description=rule.description)


class AveragingConfig(BaseModel):
    """All keys of `raylab train` for the averaging methods.

    Types are taken strictly, as `PipelineConfig`'s are. What depends on another key, such as a
    delay below tau, is checked where the run is made.

    >>> AveragingConfig(method="local_sgd", tau=8).delay is None
    True
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    method: Literal["minibatch_sgd", "local_sgd", "dasgd"] = Field(
        "dasgd", description="what is averaged and when, see the methods above"
    )

    model: Text = _shared("model")
    model_options: dict[str, Any] = _shared("model_options")

    data: Text = _shared("data")
    batch_size: Count | None = Field(
        None,
        description="samples of a worker's local batch; null: 32, but 16 where digits, which are "
        "few, are resized to 32",
    )
    eval_batch_size: Count | None = _shared("eval_batch_size")
    augment: bool = _shared("augment")
    image_size: Count | None = _shared("image_size")
    validation: Share = _shared("validation")
    data_root: Text | None = _shared("data_root")
    download: bool = _shared("download")
    epochs: Count = Field(1, description="passes over the training data, all workers together")

    workers: Count | list[Count] = Field(
        2,
        description="W, each with a replica; or the fewest and the most, e.g. [1,4]: as many as "
        "the cluster has room for, more as soon as it has",
    )
    tau: Count | Literal["auto"] | None = Field(
        None,
        description="local steps between two averages; auto: measured before the run, d + 1; null: "
        "the method's own, 4, and 1 for minibatch_sgd",
    )
    delay: Natural | Literal["auto"] | None = Field(
        None,
        description="d, local steps by which an average is merged late, less than tau; auto: "
        "measured before the run, the smallest that hides the average; null: 1 for dasgd, else 0",
    )
    xi: Share | None = Field(
        None,
        description="weight of a worker's own weights in a merge; null: 0.25 for dasgd, else 0",
    )
    average_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of what is sent: as it is, or differences in half of the bytes"
    )
    average_top_k: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the entries that are sent, the largest; null: all"
    )

    optimizer: Text = _shared("optimizer")
    lr: Positive | None = _shared("lr")
    base_batch_size: Count | None = _shared("base_batch_size")
    momentum: NotNegative | None = _shared("momentum")
    weight_decay: NotNegative | None = _shared("weight_decay")
    optimizer_options: dict[str, Any] = _shared("optimizer_options")
    recipe: Text | None = _shared("recipe")
    schedule: Literal["constant", "steps", "cosine", "polynomial"] | None = _shared("schedule")
    power: Positive | None = _shared("power")
    freeze_fc_epochs: NotNegative = _shared("freeze_fc_epochs")
    warmup_epochs: NotNegative | None = _shared("warmup_epochs")
    milestones: list[NotNegative] | None = _shared("milestones")
    gamma: Positive | None = _shared("gamma")
    clip_norm: Positive | None = Field(
        None, description="largest norm of the gradient that a worker applies; null: no limit"
    )
    clip_value: Positive | None = _shared("clip_value")
    precision: Literal["float32", "bfloat16"] = _shared("precision")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = _shared("seed")

    cpus_per_worker: Positive | None = Field(
        None, description="CPUs of a worker; null: 1, or a share of this machine's if it has fewer"
    )
    gpus_per_worker: NotNegative = Field(
        0.0, description="GPUs of a worker; with any, it computes there and averages go by NCCL"
    )
    wait_s: Positive | None = _shared("wait_s")
    resize_s: Positive = Field(
        60.0, description="seconds between two looks at whether there is room for more workers"
    )
    timeout_s: Count = Field(
        600, description="seconds after which an average that does not come is a lost link"
    )

    evaluate_every: Count = _shared("evaluate_every")
    report_every: Natural = Field(
        0, description="local steps between two rows of metrics; 0: a row an epoch"
    )
    checkpoint_every: Natural = Field(
        0,
        description="local steps between two checkpoints, made where no average is under way; 0: "
        "the time decides alone",
    )
    checkpoint_minutes: NotNegative = _shared("checkpoint_minutes")
    keep_checkpoints: Count = _shared("keep_checkpoints")
    max_failures: Annotated[int, Field(ge=-1)] = Field(
        3,
        description="losses of a worker or node after which the run goes on by itself from the "
        "last checkpoint; -1: any number",
    )
    tensorboard: bool = _shared("tensorboard")
    storage: Text = _shared("storage")
    name: Text | None = _shared("name")


class AveragingSimulationConfig(AveragingConfig):
    """All keys of `raylab simulate` for the averaging methods: all replicas in one process.

    Those of resources, waiting and checkpoints change nothing.

    >>> AveragingSimulationConfig(workers=32).all_reduce
    'ring'
    """

    workers: Count = Field(4, description="W, replicas")
    step_s: Positive | None = Field(
        None,
        description="modelled time of a local step of a worker, seconds; null: what it takes here, "
        "so that no two runs are alike in their times",
    )
    workers_per_node: Count = Field(1, description="workers on a node; it must divide W")
    ethernet_gbit_s: Positive = Field(10.0, description="between two nodes, each way, Gbit/s")
    pcie_gbyte_s: Positive = Field(16.0, description="between two workers of a node, GByte/s")
    all_reduce: Literal["tree", "butterfly", "ring"] = Field(
        "ring", description="how an average travels"
    )
    clock: Literal["virtual"] = Field("virtual", description="what time_s is told by")


AVERAGING_MACHINE = (
    *("workers", "step_s", "workers_per_node", "ethernet_gbit_s", "pcie_gbyte_s", "all_reduce"),
)
"""The keys that say what is simulated, for the help."""
