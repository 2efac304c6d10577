"""A configuration becomes objects, and `PipelineTrainer` runs or plans them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from raylab.config import PipelineConfig
from raylab.data import DataSet, load
from raylab.drivers.pipeline.trainer import PipelineTrainer
from raylab.drivers.resolve import resolve
from raylab.drivers.result import Result
from raylab.drivers.run_place import run_config
from raylab.errors import ConfigError
from raylab.models import build
from raylab.optimizers import Schedule, make_optimizer

__all__ = ["plan_pipeline", "run_pipeline"]


def run_pipeline(
    config: PipelineConfig,
    *,
    progress: bool,
    resume: str | None = None,
    resume_step: int | None = None,
) -> Result:
    """Train as `config` says and return the result.

    The run's config.yaml has every default resolved, and repeats the run bit for bit.

    Args:
        config: of the run.
        progress: show progress on standard error.
        resume: folder of a run to go on with, see `PipelineTrainer.fit`.
        resume_step: of an older checkpoint of it.

    Raises:
        InputError: the configuration does not fit together, or the data, or the cluster.
        RaylabError: the run failed.
    """
    config = resolve(config)
    trainer, data = _trainer(config)
    return trainer.fit(
        data.train,
        epochs=config.epochs,
        test=data.test,
        evaluate_every=config.evaluate_every,
        report_every=config.report_every,
        progress=progress,
        resume=resume,
        resume_step=resume_step,
    )


def plan_pipeline(config: PipelineConfig, *, measure: bool) -> dict[str, Any]:
    """Plan the run that `config` says, see `PipelineTrainer.plan`.

    Args:
        config: of the run.
        measure: start the stages and time them; False: count only.

    Raises:
        InputError: the configuration does not fit together, or the data, or the cluster.
        RaylabError: a stage failed.
    """
    config = resolve(config)
    trainer, data = _trainer(config)
    return {"model": config.model, "data": data.name, **trainer.plan(data.train, measure=measure)}


def _trainer(config: PipelineConfig) -> tuple[PipelineTrainer, DataSet]:
    data = load(
        config.data,
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        seed=config.seed,
        augment=config.augment,
        image_size=config.image_size,
        root=config.data_root,
        download=config.download,
    )
    # The spec with nothing left to a default, and the path of a file absolute.
    config = config.model_copy(update={"data": data.name})
    trainer = PipelineTrainer(
        _model(config, data),
        nn.CrossEntropyLoss(),
        method=config.method,
        stages=config.stages,
        accumulate=config.accumulate,
        optimizer=_optimizer(config),
        schedule=_schedule(config),
        delay=config.delay,
        weight_version=config.weight_version,
        barrier=config.barrier,
        micro_batches=config.micro_batches,
        gradient_shrink=config.gradient_shrink,
        sigma_every=config.sigma_every,
        clip_norm=config.clip_norm,
        clip_value=config.clip_value,
        precision=config.precision,
        seed=config.seed,
        wire=config.wire,
        carrier=config.carrier,
        balance=config.balance,
        timeline=config.timeline,
        tensorboard=config.tensorboard,
        resources_per_stage=_resources(config),
        wait_s=config.wait_s,
        recompute=config.recompute,
        checkpoint_every=config.checkpoint_every,
        checkpoint_minutes=config.checkpoint_minutes,
        run_config=run_config(
            config.storage, config.name, config.keep_checkpoints, config.max_failures
        ),
        config=config.model_dump(exclude={"measured"}),
    )
    return trainer, data


def _schedule(config: PipelineConfig) -> Schedule:
    return Schedule(
        kind=config.schedule or "constant",
        warmup_epochs=config.warmup_epochs or 0.0,
        milestones=tuple(config.milestones or ()),
        gamma=0.1 if config.gamma is None else config.gamma,
        epochs=config.epochs,
        power=config.power or 2.0,
        freeze_fc_epochs=config.freeze_fc_epochs,
    )


def _model(config: PipelineConfig, data: DataSet) -> nn.Sequential:
    channels, height, _ = data.input_shape
    shape = {"in_channels": channels, "num_classes": data.num_classes, "image_size": height}
    _refuse("model_options", config.model_options, {"name": "model=NAME"}, "is set by")
    _refuse("model_options", config.model_options, dict.fromkeys(shape, "the data"), "follows from")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return build(config.model, **shape, **config.model_options)
        except TypeError as error:
            if not config.model_options:
                raise
            raise ConfigError(
                f"`model_options` must fit {config.model}, but got {config.model_options}: {error}"
            ) from error


def _optimizer(config: PipelineConfig) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    own = {key: f"{key}=VALUE" for key in ("lr", "momentum", "weight_decay")}
    own["name"] = "optimizer=NAME"
    _refuse("optimizer_options", config.optimizer_options, own, "is set by")
    given = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    options = {key: value for key, value in given.items() if value is not None}
    return make_optimizer(config.optimizer, config.lr or 0.0, **options, **config.optimizer_options)


def _refuse(key: str, options: Collection[str], elsewhere: dict[str, str], verb: str) -> None:
    for name in options:
        if name in elsewhere:
            raise ConfigError(f"`{key}.{name}` is no option: {name} {verb} {elsewhere[name]}")


def _resources(config: PipelineConfig) -> dict[str, float] | None:
    if config.cpus_per_stage is None and not config.gpus_per_stage:
        return None
    return {"CPU": config.cpus_per_stage or 1.0, "GPU": config.gpus_per_stage}
