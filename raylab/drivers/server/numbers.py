"""The numbers of a parameter server's run, real or simulated: what is asked for, what the data
says, and what it came to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.server.ends import Ends
from raylab.algorithms.server.rule_factory import SERVER_METHODS, ServerSettings, chosen_eta
from raylab.drivers.server.workload import Facts
from raylab.errors import ConfigError
from raylab.problems.objective import Vector

__all__ = ["Limits", "came_to", "ends", "first_w", "limits", "resolved", "with_facts", "workers_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a run ends, and how often it looks where it stands.

    Args:
        epochs: passes over the samples.
        messages: applied; None: any number.
        tolerance: largest figure that is good enough; 0: none is.
        certify_every: epochs between two certificates.
    """

    epochs: float
    messages: int | None
    tolerance: float
    certify_every: float


def limits(epochs: float, messages: int | None, tolerance: float, certify_every: float) -> Limits:
    """Return checked limits.

    Raises:
        ConfigError: one is out of its range.
    """
    for name, value in (("epochs", epochs), ("certify_every", certify_every)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ConfigError(f"{name} > 0 must hold for a number, but got {value!r}")
    if messages is not None and (type(messages) is not int or messages < 1):
        raise ConfigError(f"messages >= 1 must hold for an integer, but got {messages!r}")
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance >= 0 must hold, but got {tolerance!r}")
    return Limits(
        epochs=float(epochs),
        messages=messages,
        tolerance=float(tolerance),
        certify_every=float(certify_every),
    )


def ends(limits: Limits, epoch_samples: int, figure: str) -> Ends:
    """Return the limits as the server's loop takes them, in samples."""
    return Ends(
        samples=limits.epochs * epoch_samples,
        messages=limits.messages,
        tolerance=limits.tolerance,
        figure=figure,
        certify_samples=limits.certify_every * epoch_samples,
    )


def workers_of(method: str) -> int:
    """Return K where none is given."""
    return 1 if method in SERVER_METHODS and SERVER_METHODS[method].serial else 4


def with_facts(settings: ServerSettings, facts: Mapping[int, Facts]) -> ServerSettings:
    """Return settings with what the objectives of all shards say of themselves."""
    first = facts[0]
    return replace(
        settings,
        dim=first.dim,
        strength=first.strength,
        smoothness=max(each.smoothness for each in facts.values()),
        curvature=sum(each.curvature for each in facts.values()) / settings.n,
        convex=all(each.convex for each in facts.values()),
        dual_width=first.dual_width,
    )


def first_w(settings: ServerSettings, first: Facts) -> Vector:
    """Return the w to begin with: the first objective's, or zero for a method with duals."""
    if settings.traits.duals or first.initial is None:
        return np.zeros(first.dim)
    return first.initial


def resolved(settings: ServerSettings) -> dict[str, Any]:
    """Return what was decided, by the settings' names."""
    return {
        "first_eta": chosen_eta(settings) if settings.traits.stepped else None,
        "local_steps": settings.message_samples if settings.traits.duals else None,
        "inner": settings.inner_messages if not settings.traits.duals else None,
        "delta": settings.delta_updates,
        "n": settings.n,
        "dim": settings.dim,
        "smoothness": settings.smoothness,
        "curvature": settings.curvature,
    }


def came_to(rows: Sequence[Mapping[str, Any]], ended_by: str, figure: str) -> dict[str, Any]:
    """Return what the summary of a run says beside its last row.

    Args:
        rows: of metrics.
        ended_by: tolerance, epochs or messages, or that it was asked to.
        figure: that the tolerance is of.
    """
    last = rows[-1]
    counts = [each for row in rows for each in enumerate(row["staleness_counts"])]
    total = sum(count for _, count in counts)
    return {
        "kind": "parameter_server",
        "ended_by": ended_by,
        "figure": figure,
        "messages": last["messages"],
        "samples_per_s": last["samples_seen"] / max(last["time_s"], 1e-12),
        "staleness_mean": sum(age * count for age, count in counts) / max(1, total),
        "staleness_max": max(row["staleness_max"] for row in rows),
    }
