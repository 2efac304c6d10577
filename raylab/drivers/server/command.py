"""A configuration becomes a `ParameterServerTrainer`, which runs it."""

from __future__ import annotations

from raylab.algorithms.server.method_table import SERVER_METHODS
from raylab.config import ParameterServerConfig
from raylab.drivers.listener import OnRow
from raylab.drivers.result import Result
from raylab.drivers.run_place import run_config
from raylab.drivers.server.kinds import kind_of
from raylab.drivers.server.numbers import workers_of
from raylab.drivers.server.trainer import ParameterServerTrainer
from raylab.drivers.server.workload import check_needs
from raylab.records import new_run_name

__all__ = ["check_server", "resolve_server", "run_server"]


def resolve_server(config: ParameterServerConfig) -> ParameterServerConfig:
    """Return `config` with what depends on the method; resolving it again changes nothing."""
    kind = kind_of(config.problem, config.method)
    return config.model_copy(
        update={
            "name": config.name or new_run_name(config.method),
            "workers": config.workers or workers_of(config.method),
            "data": config.data or kind.data,
            "epochs": config.epochs or kind.epochs,
        }
    )


def check_server(config: ParameterServerConfig) -> None:
    """Check that the keys go together, as far as that is seen without the data.

    Raises:
        ConfigError: they do not.
    """
    _trainer(config)
    if config.method in SERVER_METHODS:
        check_needs(config.problem, SERVER_METHODS[config.method])


def run_server(
    config: ParameterServerConfig,
    *,
    progress: bool,
    resume: str | None = None,
    resume_step: int | None = None,
    on_row: OnRow | None = None,
) -> Result:
    """Train as `config` says and return the result.

    Args:
        config: of the run.
        progress: show progress on standard error.
        resume: folder of a run to go on with, see `ParameterServerTrainer.fit`.
        resume_step: of an older checkpoint of it.
        on_row: called with every row; a True ends the run.

    Raises:
        InputError: the configuration does not fit together, or the data, or the cluster.
        RaylabError: the run failed.
    """
    config = resolve_server(config)
    return _trainer(config).fit(
        config.data,
        epochs=config.epochs,
        messages=config.messages,
        tolerance=config.tolerance,
        certify_every=config.certify_every,
        progress=progress,
        resume=resume,
        resume_step=resume_step,
        on_row=on_row,
    )


def _trainer(config: ParameterServerConfig) -> ParameterServerTrainer:
    return ParameterServerTrainer(
        config.problem,
        method=config.method,
        workers=config.workers,
        servers=config.servers,
        strength=config.strength,
        options=config.options,
        eta=config.eta,
        local_steps=config.local_steps,
        inner=config.inner,
        batch=config.batch,
        coordinates=config.coordinates,
        broadcast=config.broadcast,
        delta=config.delta,
        sampling=config.sampling,
        pretrain=config.pretrain,
        straggler=config.straggler,
        sample_s=config.sample_s,
        seed=config.seed,
        wire=config.wire,
        checkpoint_every=config.checkpoint_every,
        checkpoint_minutes=config.checkpoint_minutes,
        resources_per_worker=None
        if config.cpus_per_worker is None
        else {"CPU": config.cpus_per_worker},
        wait_s=config.wait_s,
        run_config=run_config(
            config.storage, config.name, config.keep_checkpoints, config.max_failures
        ),
        config=config.model_dump(exclude={"resolved"}),
    )
