"""The numbers of AsySVRG in shared memory, and what is chosen where none is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from raylab.algorithms.server.step_sizes import long_rows
from raylab.algorithms.shared_memory.step_sizes import EXPONENT, auto_eta, inner_steps, theory_eta
from raylab.errors import ConfigError
from raylab.problems.objective import LinearObjective, Objective

__all__ = ["SharedSettings"]

_COORDINATES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSettings:
    """What the threads are told.

    Args:
        threads: K.
        eta: the step; "theory": of Theorem 2.3.2; "auto": the largest that is likely to be stable,
            halved whenever a certificate has risen, after going back to the last good w.
        inner: m, steps of an epoch; None: two passes, and with eta="theory" the theorem's.
        batch: b, samples of a step, with replacement.
        coordinates: of a block; None: 1,000, or all if there are fewer.
        seed: of the draws.

    Raises:
        ConfigError: a number is out of its range.
    """

    threads: int = 1
    eta: float | Literal["auto", "theory"] = "auto"
    inner: int | None = None
    batch: int = 10
    coordinates: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("threads", "batch", "inner", "coordinates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, but got {value}")
        if isinstance(self.eta, str):
            if self.eta not in ("auto", "theory"):
                raise ConfigError(f'eta must be a number, "auto" or "theory", not {self.eta!r}')
        elif not (math.isfinite(self.eta) and self.eta > 0):
            raise ConfigError(f"eta must be above 0, but got {self.eta}")

    def block(self, dim: int) -> int:
        """Return the coordinates that a step writes to.

        Raises:
            ConfigError: there are not so many.
        """
        if self.coordinates is None:
            return min(_COORDINATES, dim)
        if self.coordinates > dim:
            raise ConfigError(
                f"coordinates must be 1 to {dim}, those of w, but got {self.coordinates}"
            )
        return self.coordinates

    def first_eta(self, objective: Objective) -> float:
        """Return the step to begin with."""
        if not isinstance(self.eta, str):
            return float(self.eta)
        if self.eta == "theory":
            return self.theory_eta(objective)
        return auto_eta(
            smoothness=objective.smoothness,
            mean_curvature=objective.curvature() / objective.shard.n,
            strength=objective.strength,
            batch=self.batch,
            late=(self.threads - 1) * self.block(objective.dim) / objective.dim,
        )

    def theory_eta(self, objective: Objective) -> float:
        """Return the largest step of Theorem 2.3.2."""
        return theory_eta(
            smoothness=objective.smoothness + objective.strength,
            n=objective.shard.n,
            blocks=objective.dim / self.block(objective.dim),
            delta=self.threads - 1,
        )

    def inner_of(self, objective: Objective) -> int:
        """Return m."""
        n = objective.shard.n
        if self.inner is not None:
            return self.inner
        if self.eta == "theory":
            blocks = objective.dim / self.block(objective.dim)
            return inner_steps(n=n, blocks=blocks, delta=self.threads - 1)
        return max(1, 2 * n // self.batch)

    def notes(self, objective: Objective) -> list[str]:
        """Return what of the settings the theorem does not cover, and whether rows are long."""
        slow: list[str] = []
        if isinstance(objective, LinearObjective):
            slow = long_rows(objective.smoothness, objective.strength, objective.shard.n)
        if isinstance(self.eta, str):
            return slow
        most = self.theory_eta(objective)
        if self.eta <= most * (1 + 1e-12):
            return slow
        return [
            f"eta={self.eta:.3g} is beyond the bound of Theorem 2.3.2 with alpha={EXPONENT:.3g}, "
            f"which is {most:.3g} for {self.threads} threads",
            *slow,
        ]
