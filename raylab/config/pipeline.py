"""`PipelineConfig`: every key of a pipeline run with its type, its range and its default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raylab.config.kinds import Count, Natural, NotNegative, Positive, Share, Text

__all__ = ["METHODS", "PipelineConfig"]

METHODS = {
    "bp": "back-propagation, one stage at a time: the baseline",
    "gpipe": "GPipe: micro-batches, all forwards then all backwards, no gradient is late",
    "1f1b": "1F1B: the numbers of GPipe with fewer micro-batches in memory",
    "ddg": "decoupled backpropagation: over each link gradients are one batch late",
    "fr": "Features Replay: late as ddg, but inputs are kept and replayed instead of graphs",
    "adl": "Accumulated Decoupled Learning: two batches late, one update from `accumulate` batches",
    "dsp": "Diversely Stale Parameters: late as adl, inputs are replayed instead of graphs",
    "dni": "synthetic gradients: every stage makes its own from features and labels, none is late",
    "dgl": "Decoupled Greedy Learning: every stage has a classifier and a loss of its own",
}
"""The pipeline methods, a line each."""

MethodName = Literal["bp", "gpipe", "1f1b", "ddg", "fr", "adl", "dsp", "dni", "dgl"]


class PipelineConfig(BaseModel):
    """All keys of `raylab train` for the pipeline methods.

    Types are taken strictly: 2.5 is no number of stages, and "yes, please" is not true. Ranges
    that depend on another key, such as one delay per link, are checked where the run is made.

    >>> PipelineConfig(method="ddg", stages=4).lr is None
    True
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    method: MethodName = Field("adl", description="how gradients come back, see the methods above")

    model: Text = Field(
        "resnet20",
        description="network: resnet8, 20, 56, 110, 164, 1202 or another CIFAR depth; resnet18, "
        "50, 101, 152, densenet121, mobilenet_v2; for small images vgg11_bn, vgg16_bn, googlenet, "
        "resnext29, dpn92, resnet50_32px, resnet101_32px, densenet121_32px, mobilenet_v2_32px; "
        "mlp, fcn5, cnn5",
    )
    model_options: dict[str, Any] = Field(
        {}, description="options of the network, e.g. model_options.width=64 for fcn5 and cnn5"
    )

    data: Text = Field(
        "digits",
        description="digits (built in), mnist, cifar10, cifar100, npz:PATH (uint8 x_train, x_test "
        "and integer y_train, y_test), random:n=1000,shape=3x32x32,classes=10",
    )
    batch_size: Count | None = Field(
        None,
        description="samples per training batch; null: 64, but 16 where digits, which are few, are "
        "resized to 32",
    )
    eval_batch_size: Count | None = Field(
        None, description="samples per test batch; null: batch_size"
    )
    augment: bool = Field(False, description="crop and mirror training images at random")
    image_size: Count | None = Field(
        None,
        description="height and width that images are resized to, pixels; null: as they are, but "
        "digits (8) to 32 for every model except mlp, fcn5 and cnn5",
    )
    validation: Share = Field(
        0.0,
        description="share of the training samples that is held out: test figures are then of it, "
        "and the data's own test samples are left alone; for searches",
    )
    data_root: Text | None = Field(
        None, description="folder of mnist, cifar10, cifar100; null: ~/.cache/raylab/data"
    )
    download: bool = Field(False, description="fetch a data set that is not in data_root")
    epochs: Count = Field(1, description="passes over the training data")

    stages: Count | list[Count] = Field(
        2,
        description="K, stage actors, at most 16, cut as balance says; or the blocks "
        "that start a new stage, e.g. [3,6] for three stages",
    )
    balance: Literal["counted", "measured", "memory"] = Field(
        "counted",
        description="what the cut makes even: counted work, the same on every machine; measured "
        "times of the stages' devices; or memory, weights and all that is in flight",
    )
    accumulate: Count = Field(1, description="M, batches whose mean gradient makes one update")
    delay: Natural | list[Natural] | Literal["auto"] | None = Field(
        None,
        description="batches by which gradients are late over each link, for ddg, fr, adl and dsp, "
        "or by which dni is corrected late; a list has one number per link; auto: measured before "
        "the run, the smallest that hides the messages; null: the method's own",
    )
    weight_version: Literal["forward", "current"] = Field(
        "forward",
        description="weights that a late gradient is evaluated at: those of its own forward, as "
        "in the papers, or the current ones",
    )
    recompute: bool = Field(
        False,
        description="keep inputs instead of graphs and run the forward again at the weights that "
        "it had, for ddg and adl: the same numbers, less memory, one more forward",
    )
    barrier: bool = Field(
        False, description="run bp, ddg, fr, adl or dsp in lock step, as the papers' timings do"
    )
    micro_batches: Count = Field(4, description="pieces of a batch, for gpipe and 1f1b")
    gradient_shrink: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="factor of an error gradient over each link, for ddg, fr, adl and dsp: what "
        "is later counts less; 1 leaves it as it is",
    )
    sigma_every: Natural = Field(
        0,
        description="updates between two measurements of the sufficient-direction constant sigma "
        "of bp, ddg, fr, adl, dsp: the part of the true gradient in what is applied; 0: none",
    )

    optimizer: Text = Field(
        "sgd",
        description="sgd, adam, adamw or another class of torch.optim; nag; lars and clars, with a "
        "rate for every layer, for large batches",
    )
    lr: Positive | None = Field(
        None,
        description="learning rate; null: the recipe's, else 0.05 for sgd and nag, 0.1 for lars "
        "and clars per 128 samples of an update, 0.001 for others",
    )
    base_batch_size: Count | None = Field(
        None,
        description="samples an update that lr is meant for: it grows with batch_size and "
        "accumulate in proportion; null: lr is what it is",
    )
    momentum: NotNegative | None = Field(
        None, description="momentum; null: the recipe's, else 0.9 for sgd, nag, lars, clars"
    )
    weight_decay: NotNegative | None = Field(
        None, description="weight decay; null: the recipe's, else the optimizer's own"
    )
    optimizer_options: dict[str, Any] = Field(
        {}, description="further options of the optimizer, e.g. optimizer_options.nesterov=true"
    )
    recipe: Text | None = Field(
        None,
        description="a paper's settings, for keys that are null: ddg, fr, adl (CIFAR-10), "
        "adl_imagenet of sgd, lars, clars (CIFAR-10) of these; they set lr, momentum, weight_decay "
        "and the schedule",
    )
    schedule: Literal["constant", "steps", "cosine", "polynomial"] | None = Field(
        None,
        description="of the learning rate after the warm-up; cosine and polynomial fall to 0 at "
        "the last epoch; null: the recipe's, else steps if there are milestones, else constant",
    )
    power: Positive | None = Field(
        None, description="of polynomial, 1 falls in a line; null: the recipe's, else 2"
    )
    freeze_fc_epochs: NotNegative = Field(
        0.0, description="epochs at the start in which linear layers are kept as they are"
    )
    warmup_epochs: NotNegative | None = Field(
        None, description="epochs over which the rate rises from 0; null: the recipe's, else 0"
    )
    milestones: list[NotNegative] | None = Field(
        None, description="epochs at which steps multiplies the rate by gamma; null: the recipe's"
    )
    gamma: Positive | None = Field(
        None, description="factor of a step; null: the recipe's, else 0.1"
    )
    clip_norm: Positive | None = Field(
        None, description="largest norm of each stage's gradient; null: no limit"
    )
    clip_value: Positive | None = Field(
        None, description="largest magnitude of a gradient's element; null: no limit"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the arithmetic; bfloat16 computes under autocast"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="of weights, order of the batches, augmentation and dropout"
    )

    wire: Literal["zmq", "ray"] = Field(
        "zmq", description="what carries features and gradients between the stages"
    )
    carrier: Literal["auto", "inline", "distributed", "ipc"] = Field(
        "auto",
        description="of the tensors beside wire=zmq: inline, through the host's memory; "
        "distributed, NCCL between GPUs and gloo between CPUs; ipc, within a GPU that stages "
        "share; auto: by where the two stages live, inline on CPUs",
    )
    cpus_per_stage: Positive | None = Field(
        None, description="CPUs of a stage; null: 1, or a share of this machine's if it has fewer"
    )
    gpus_per_stage: NotNegative = Field(
        0.0, description="GPUs of a stage, 0.5 is half of one; with any, it computes there"
    )
    wait_s: Positive | None = Field(
        None,
        description="how long to wait for these resources, seconds; null: 60 on a machine of its "
        "own, 1800 on a cluster, where nodes may have to come and others to end",
    )

    evaluate_every: Count = Field(1, description="epochs between two tests")
    report_every: Natural = Field(
        0, description="batches between two rows of metrics; 0: a row an epoch"
    )
    checkpoint_every: Natural = Field(
        0, description="batches between two checkpoints; 0: the time decides alone"
    )
    checkpoint_minutes: NotNegative = Field(
        1.0, description="minutes between two checkpoints; 0: the count decides alone"
    )
    keep_checkpoints: Count = Field(2, description="checkpoints to keep, the newest ones")
    max_failures: Annotated[int, Field(ge=-1)] = Field(
        3,
        description="losses of a stage, node or link after which the run goes on by itself from "
        "the last checkpoint; -1: any number",
    )
    timeline: Natural = Field(
        100,
        description="batches at the start whose timeline is kept, what each stage did when; "
        "0: none",
    )
    tensorboard: bool = Field(
        False, description="write the rows' numbers for TensorBoard, too, as they come"
    )
    storage: Text = Field(
        "~/raylab_results", description="folder of all runs, or an address: s3://bucket/path"
    )
    name: Text | None = Field(
        None, description="folder of this run in storage; null: <method>-<time>"
    )
    measured: dict[str, Any] | None = Field(
        None,
        description="what delay=auto or balance=measured has found, seconds; written by a run, "
        "read by none",
    )
