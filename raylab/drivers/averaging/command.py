"""A configuration becomes an `AveragingTrainer`, which runs it."""

from __future__ import annotations

from torch import nn

from raylab.config import AveragingConfig
from raylab.drivers.averaging.resolved import resolve_averaging
from raylab.drivers.averaging.trainer import AveragingTrainer
from raylab.drivers.cluster import resources_asked
from raylab.drivers.ingredients import data_notes, data_of, model_of, optimizer_of, schedule_of
from raylab.drivers.listener import OnRow
from raylab.drivers.notes import say_notes
from raylab.drivers.result import Result
from raylab.drivers.run_place import run_config

__all__ = ["run_averaging"]


def run_averaging(
    config: AveragingConfig,
    *,
    progress: bool,
    resume: str | None = None,
    resume_step: int | None = None,
    on_row: OnRow | None = None,
) -> Result:
    """Train as `config` says and return the result.

    The run's config.yaml has every default resolved, and repeats the run.

    Args:
        config: of the run.
        progress: show progress on standard error.
        resume: folder of a run to go on with, see `AveragingTrainer.fit`.
        resume_step: of an older checkpoint of it.
        on_row: called with every row; a True ends the run.

    Raises:
        InputError: the configuration does not fit together, or the data, or the cluster.
        RaylabError: the run failed.
    """
    config = resolve_averaging(config)
    data = data_of(config)
    # The spec with nothing left to a default, and the path of a file absolute.
    config = config.model_copy(update={"data": data.name})
    trainer = AveragingTrainer(
        model_of(config, data),
        nn.CrossEntropyLoss(),
        method=config.method,
        workers=config.workers,
        tau=config.tau,
        delay=config.delay,
        xi=config.xi,
        optimizer=optimizer_of(config),
        schedule=schedule_of(config),
        average_dtype=config.average_dtype,
        average_top_k=config.average_top_k,
        clip_norm=config.clip_norm,
        clip_value=config.clip_value,
        precision=config.precision,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
        checkpoint_minutes=config.checkpoint_minutes,
        tensorboard=config.tensorboard,
        resources_per_worker=resources_asked(config.cpus_per_worker, config.gpus_per_worker),
        wait_s=config.wait_s,
        resize_s=config.resize_s,
        timeout_s=config.timeout_s,
        run_config=run_config(
            config.storage, config.name, config.keep_checkpoints, config.max_failures
        ),
        config=config.model_dump(),
    )
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
