"""A configuration becomes objects, and `PipelineTrainer` runs or plans them."""

from __future__ import annotations

from typing import Any

from torch import nn

from raylab.config import PipelineConfig
from raylab.data import DataSet
from raylab.drivers.cluster import resources_asked
from raylab.drivers.ingredients import data_notes, data_of, model_of, optimizer_of, schedule_of
from raylab.drivers.listener import OnRow
from raylab.drivers.notes import say_notes
from raylab.drivers.pipeline.trainer import PipelineTrainer
from raylab.drivers.resolve import resolve
from raylab.drivers.result import Result
from raylab.drivers.run_place import run_config

__all__ = ["plan_pipeline", "run_pipeline"]


def run_pipeline(
    config: PipelineConfig,
    *,
    progress: bool,
    resume: str | None = None,
    resume_step: int | None = None,
    on_row: OnRow | None = None,
) -> Result:
    """Train as `config` says and return the result.

    The run's config.yaml has every default resolved, and repeats the run bit for bit.

    Args:
        config: of the run.
        progress: show progress on standard error.
        resume: folder of a run to go on with, see `PipelineTrainer.fit`.
        resume_step: of an older checkpoint of it.
        on_row: called with every row; a True ends the run.

    Raises:
        InputError: the configuration does not fit together, or the data, or the cluster.
        RaylabError: the run failed.
    """
    config = resolve(config)
    trainer, data = _trainer(config)
    say_notes(data_notes(config, data), progress=progress)
    return trainer.fit(
        data.train,
        epochs=config.epochs,
        test=data.test,
        evaluate_every=config.evaluate_every,
        report_every=config.report_every,
        progress=progress,
        resume=resume,
        resume_step=resume_step,
        on_row=on_row,
    )


def plan_pipeline(
    config: PipelineConfig, *, measure: bool, progress: bool = False
) -> dict[str, Any]:
    """Plan the run that `config` says, see `PipelineTrainer.plan`.

    Args:
        config: of the run.
        measure: start the stages and time them; False: count only.
        progress: say on standard error what is being done.

    Raises:
        InputError: the configuration does not fit together, or the data, or the cluster.
        RaylabError: a stage failed.
    """
    config = resolve(config)
    trainer, data = _trainer(config)
    plan = trainer.plan(data.train, measure=measure, progress=progress)
    return {"model": config.model, "data": data.name, **plan}


def _trainer(config: PipelineConfig) -> tuple[PipelineTrainer, DataSet]:
    data = data_of(config)
    # The spec with nothing left to a default, and the path of a file absolute.
    config = config.model_copy(update={"data": data.name})
    trainer = PipelineTrainer(
        model_of(config, data),
        nn.CrossEntropyLoss(),
        method=config.method,
        stages=config.stages,
        accumulate=config.accumulate,
        optimizer=optimizer_of(config),
        schedule=schedule_of(config),
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
        resources_per_stage=resources_asked(config.cpus_per_stage, config.gpus_per_stage),
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
