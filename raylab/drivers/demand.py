"""What a run will ask of the cluster, known before anything is started."""

from __future__ import annotations

from raylab.config import AveragingConfig, ParameterServerConfig, RunConfiguration
from raylab.drivers.cluster import resources_asked, stage_resources

__all__ = ["bundles"]


def bundles(config: RunConfiguration) -> list[dict[str, float]]:
    """Return what each of a run's actors needs, by Ray's names, in the order in which they take
    bundles of a placement group (`actors.groups.within.Within`): stages; servers, then workers;
    replicas; or the one process of threads.

    A run with the fewest and the most workers has the fewest in a placement group. What is not
    said is one CPU an actor: the shares that actors get of a machine of their own are given in a
    configuration, for instance as cpus_per_stage.

    Args:
        config: of the run.

    Raises:
        ConfigError: it asks for no number of workers, or for a negative amount.
    """
    if isinstance(config, ParameterServerConfig):
        from raylab.drivers.server.command import resolve_server
        from raylab.drivers.server.elastic import fewest_and_most
        from raylab.drivers.server.kinds import kind_of

        asked = resolve_server(config)
        workers, _ = fewest_and_most(asked.workers or 1)
        needs = _each(asked.cpus_per_worker)
        return kind_of(asked.problem, asked.method).bundles(needs, workers, asked.servers)
    if isinstance(config, AveragingConfig):
        from raylab.drivers.averaging.settings import workers_of

        least, _ = workers_of(config.workers)
        return [_each(config.cpus_per_worker, config.gpus_per_worker) for _ in range(least)]
    stages = config.stages if isinstance(config.stages, int) else len(config.stages) + 1
    return [_each(config.cpus_per_stage, config.gpus_per_stage) for _ in range(stages)]


def _each(cpus: float | None, gpus: float = 0.0) -> dict[str, float]:
    (needs,) = stage_resources(resources_asked(cpus, gpus), 1, own=False)
    return needs
