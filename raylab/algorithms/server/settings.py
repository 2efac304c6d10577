"""The numbers of a run with a parameter server, and what is chosen where none is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from raylab.algorithms.server.method_table import SERVER_METHODS, ServerMethod
from raylab.errors import ConfigError

__all__ = ["Sampling", "ServerSettings"]

Sampling = Literal["uniform", "importance", "adaptive"]
_MARKED_BYTES = 1 << 28
_PIECES = 4
_LEAST_MESSAGES = 16
"""Of a pass: a slow message holds up less, and its end is not passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What server and workers are told alike.

    Args:
        method: a name of `SERVER_METHODS`.
        workers: K.
        n: samples of all workers together.
        dim: d, of w.
        strength: λ.
        smoothness: L, the largest Lipschitz constant of a ∇φ_i.
        curvature: c, an upper bound of the largest eigenvalue of the mean of the φ_i's Hessians;
            None: L. It is what the mean of a message depends on, L what its noise depends on.
        convex: whether every φ_i is convex.
        dual_width: numbers that one α_i takes: 1 for linear models, else d.
        eta: the step; "theory": the paper's, (3.18) or (3.30); "auto": the largest that is likely
            to be stable, halved when a certificate rises.
        local_steps: H, samples of a message of a method with duals. None: of Dis-dfSDCA as many as
            leave the step at its ceiling 1/(λn), and no more than a sixteenth of the shard; of the
            others one pass of the shard.
        inner: m of SVRG, applied messages between two full gradients; None: two passes.
        batch: samples of a message of a method without duals.
        broadcast: T, updates between two broadcasts of w to all workers; 0: none. With it a
            message is computed in a few pieces, each at the newest w that has come.
        delta: Delta, the largest staleness in updates. None: 16 K, which stragglers of the papers'
            kind hardly reach; with eta="theory" 2 K, as that step falls with its square.
        sampling: how the samples of a message are drawn.
        pretrain: passes of SGD before the SVRG of SGD_SVRG.
        seed: of all draws.

    Raises:
        ConfigError: a number is out of its range, or does not go with the method.
    """

    method: str
    workers: int
    n: int
    dim: int
    strength: float
    smoothness: float
    curvature: float | None = None
    convex: bool = True
    dual_width: int = 1
    eta: float | Literal["auto", "theory"] = "auto"
    local_steps: int | None = None
    inner: int | None = None
    batch: int = 32
    broadcast: int = 0
    delta: int | None = None
    sampling: Sampling = "uniform"
    pretrain: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in SERVER_METHODS:
            raise ConfigError(
                f"method must be one of {', '.join(SERVER_METHODS)}, but got {self.method!r}"
            )
        for name, least in (("workers", 1), ("dim", 1), ("batch", 1), ("broadcast", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, but got {getattr(self, name)}")
        if self.n < self.workers:
            raise ConfigError(
                f"every worker needs a sample, but workers={self.workers} share n={self.n}"
            )
        self._check_constants()
        self._check_method()
        self._check_messages()

    @property
    def traits(self) -> ServerMethod:
        """The row of the method."""
        return SERVER_METHODS[self.method]

    @property
    def mean_curvature(self) -> float:
        """Return c, at most L."""
        return self.smoothness if self.curvature is None else min(self.curvature, self.smoothness)

    @property
    def lambda_n(self) -> float:
        """Return λn."""
        return self.strength * self.n

    @property
    def delta_updates(self) -> int:
        """Return the bound of the staleness; with one worker nothing is stale."""
        if self.workers == 1 or self.traits.rounds:
            return 0
        if self.delta is not None:
            return self.delta
        return (2 if self.eta == "theory" else 16) * self.workers

    @property
    def message_samples(self) -> int:
        """Return H of a method with duals, else the batch."""
        shard = self.n // self.workers
        if not self.traits.duals:
            return min(self.batch, shard)
        if self.local_steps is not None:
            return self.local_steps
        if self.method != "dis_dfsdca":
            return shard
        # The H at which the two ceilings of auto_eta meet: fewer samples cost messages, more gain
        # nothing, as the step then falls as 1/H.
        spare = self.lambda_n - self.smoothness
        wanted = spare / (self.workers * (self.mean_curvature + self.strength))
        return max(1, min(shard // _LEAST_MESSAGES, int(wanted)))

    @property
    def inner_messages(self) -> int:
        """Return m."""
        return max(1, 2 * self.n // self.batch) if self.inner is None else self.inner

    @property
    def pieces(self) -> int:
        """Return in how many pieces a message is computed."""
        return min(_PIECES, self.message_samples) if self.broadcast else 1

    @property
    def synchronous(self) -> bool:
        """Whether a run with duals has no order but one: rounds, or one worker.

        A lost worker then takes the whole run back to its last checkpoint. If only its own duals
        went back, those of the others would stay ahead, and the run would come to another w.
        """
        return self.traits.duals and (self.traits.rounds or self.workers == 1)

    @property
    def halves(self) -> bool:
        """Whether a rise of the certificates halves the step, and takes the run back.

        A method without a step has nothing to halve: its dual value only rises, though on rows of
        large norm its gap rises before it falls.
        """
        return self.eta == "auto" and self.traits.stepped

    @property
    def keeps_marks(self) -> bool:
        """Whether duals are remembered with each certificate, so that a step that was too long
        costs no more than what came after it. Where that would take 256 MB or more, such a step
        costs all since the beginning.
        """
        return self.halves and self.n * self.dual_width * 8 < _MARKED_BYTES

    def _check_constants(self) -> None:
        if not (math.isfinite(self.smoothness) and self.smoothness > 0):
            raise ConfigError(
                f"smoothness must be above 0, but got {self.smoothness}: rows that are all zero, "
                "for instance, leave nothing to be learnt"
            )
        if self.strength < 0 or (self.traits.duals and self.strength == 0):
            raise ConfigError(
                f"lambda must be above 0 for methods with duals, which have w = Σ α_i/(λn), and "
                f"never below, but got {self.strength}"
            )
        if isinstance(self.eta, str):
            if self.eta not in ("auto", "theory"):
                raise ConfigError(f'eta must be a number, "auto" or "theory", not {self.eta!r}')
            if self.eta == "theory" and not self.traits.theory:
                named = ", ".join(m.name for m in SERVER_METHODS.values() if m.theory)
                raise ConfigError(
                    f'eta="theory" is (3.18) or (3.30), of {named}, not of {self.method}: give a '
                    f'number or "auto"'
                )
        elif not (math.isfinite(self.eta) and self.eta > 0):
            raise ConfigError(f"eta must be above 0, but got {self.eta}")
        elif not self.traits.stepped:
            raise ConfigError(
                f"{self.method} maximises each coordinate exactly and has no step, but got "
                f"eta={self.eta}: leave it out"
            )

    def _check_method(self) -> None:
        traits = self.traits
        if traits.serial and self.workers != 1:
            raise ConfigError(
                f"{self.method} is serial and has one worker, but got workers={self.workers}: use "
                f"dis_dfsdca or cocoa_plus for more"
            )
        if self.broadcast and self.method != "dis_dfsdca":
            raise ConfigError(
                f"broadcasts are of dis_dfsdca (alg. 6), but got broadcast={self.broadcast} with "
                f"{self.method}"
            )
        if self.sampling not in ("uniform", "importance", "adaptive"):
            raise ConfigError(
                f"sampling must be uniform, importance or adaptive, but got {self.sampling!r}"
            )
        if self.sampling != "uniform" and self.method != "dis_dfsdca":
            raise ConfigError(
                f"sampling={self.sampling!r} is of dis_dfsdca; {self.method} draws uniformly"
            )
        if self.delta is not None:
            least = self.workers - 1 if traits.late == "wait" else 0
            if self.delta < least:
                raise ConfigError(
                    f"delta must be at least {least} for {self.method} with "
                    f"workers={self.workers}, which all begin at one w, but got {self.delta}"
                )

    def _check_messages(self) -> None:
        if self.local_steps is not None:
            shard = self.n // self.workers
            most = shard if self.method == "dis_dfsdca" else None
            if self.local_steps < 1 or (most is not None and self.local_steps > most):
                raise ConfigError(
                    f"local_steps must be 1 to {most or 'any number'}, as the samples of a message "
                    f"are distinct and a worker has {shard}, but got {self.local_steps}"
                )
        if self.inner is not None and self.inner < 1:
            raise ConfigError(f"inner must be at least 1, but got {self.inner}")
        if self.pretrain < 0:
            raise ConfigError(f"pretrain must not be negative, but got {self.pretrain}")
