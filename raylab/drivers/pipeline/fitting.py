"""Settings beside the batches of a run: what can have no effect there, told before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.errors import ConfigError

__all__ = ["fitting_notes"]


def fitting_notes(
    settings: PipelineSettings, *, samples: int, batches: int | None, epochs: int
) -> list[str]:
    """Return what a user should know of settings that do not fit the batches.

    Args:
        settings: of the run.
        samples: of a batch.
        batches: of an epoch; None: they do not say.
        epochs: of the run.

    Raises:
        ConfigError: a delay was asked for that no gradient of the run would outlast.
    """
    total = None if batches is None else batches * epochs
    latest = _latest(settings)
    if total is not None and latest >= total and settings.delay not in (None, "auto"):
        raise ConfigError(
            f"a gradient must come back within the run, but got delay={_plain(settings.delay)}, "
            f"by which the first of {settings.count} stages waits for {latest} batches, and a run "
            f"of {total}: lower the delay, or raise epochs"
        )
    return list(_notes(settings, samples, total, latest))


def _notes(
    settings: PipelineSettings, samples: int, total: int | None, latest: int
) -> Iterator[str]:
    if settings.micro_batches != 4 and not settings.rule.micro_batches:
        yield (
            f"micro_batches={settings.micro_batches} is for gpipe and 1f1b, {settings.method} has "
            "no use for it"
        )
    if settings.parts > samples:
        yield (
            f"micro_batches={settings.micro_batches} is more than the {samples} samples of a "
            "batch: each is a micro-batch of its own"
        )
    if settings.weight_version != "forward" and not settings.rule.stale:
        yield (
            f"weight_version={settings.weight_version} is for late gradients, and those of "
            f"{settings.method} are not late"
        )
    if total is None:
        return
    if settings.accumulate > total:
        yield (
            f"accumulate={settings.accumulate} is more than the {total} batches of the run: they "
            "make one update"
        )
    elif latest >= total:
        yield (
            f"the first of {settings.count} stages waits for {latest} batches, and the run has "
            f"{total}: all of its gradients are of the weights that it begins with"
        )


def _latest(settings: PipelineSettings) -> int:
    """Return by how many batches gradients are late at the first stage."""
    if settings.rule.flush or not settings.rule.stale:
        return 0
    return settings.rule.stage_delays(settings.link_delays())[0] or 0


def _plain(delay: object) -> object:
    return list(delay) if isinstance(delay, tuple) else delay
