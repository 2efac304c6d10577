"""Settings that say nothing to a method, or exceed its data; told, as methods may share them."""

from __future__ import annotations

from raylab.algorithms.server.settings import ServerSettings

__all__ = ["unused"]

_BATCH, _PRETRAIN = 32, 10.0
"""Where none is given."""


def unused(settings: ServerSettings) -> list[str]:
    """Return a note for each setting that was given and changes nothing."""
    traits, method = settings.traits, settings.method
    svrg = method in ("asysvrg", "sgd_svrg")
    said = {
        "local_steps": (settings.local_steps is not None, traits.duals),
        "batch": (settings.batch != _BATCH, not traits.duals),
        "inner": (settings.inner is not None, svrg),
        "pretrain": (settings.pretrain != _PRETRAIN, method == "sgd_svrg"),
        "delta": (settings.delta is not None, settings.workers > 1 and not traits.rounds),
    }
    names = [name for name, (given, used) in said.items() if given and not used]
    found = []
    if names:
        listed = ", ".join(f"{name}={getattr(settings, name)}" for name in names)
        one = " with one worker" if names == ["delta"] and not traits.rounds else ""
        found.append(f"{method}{one} has no use for {listed}")
    shard = settings.n // settings.workers
    if not traits.duals and settings.batch > shard and "batch" not in names:
        found.append(
            f"batch={settings.batch} is more than the {shard} rows of a worker, which are a "
            "message's most"
        )
    return found
