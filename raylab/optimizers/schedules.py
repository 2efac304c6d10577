"""Learning-rate schedules over epochs: gradual warm-up, then constant, steps, cosine, polynomial.

An update's place in the run is counted on the stage's own updates, so every stage uses the rate
gamma_s of its update s, however late the gradient (HUO 5.9, ADL 16).
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from raylab.errors import ConfigError

__all__ = ["Schedule", "linear_scaling"]

Kind = Literal["constant", "steps", "cosine", "polynomial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The factor of the learning rate as a function of the epoch.

    Args:
        kind: after the warm-up: "constant"; "steps": times `gamma` at each milestone; "cosine":
            down to 0 at the end of `epochs`; "polynomial": down to 0 there by
            (1 - progress)^power, the progress counted from the end of the warm-up (You et al.
            2017; HUO Fig. 11).
        warmup_epochs: gradual warm-up: the factor rises linearly, update by update, to 1.
        milestones: epochs, ascending, at which "steps" multiplies by `gamma`.
        gamma: factor of a step, > 0.
        epochs: length of "cosine" and "polynomial".
        power: of "polynomial", > 0.
        freeze_fc_epochs: FC-freeze (Gotmare et al. 2019; HUO 4.4.3): epochs at the start in which
            linear layers are kept as they are.

    >>> schedule = Schedule(kind="steps", warmup_epochs=2, milestones=(10,), gamma=0.1)
    >>> [round(schedule.factor(s, updates_per_epoch=2), 3) for s in (0, 1, 3, 4, 19, 20)]
    [0.25, 0.5, 1.0, 1.0, 1.0, 0.1]
    """

    kind: Kind = "constant"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    epochs: float | None = None
    power: float = 2.0
    freeze_fc_epochs: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(
                f"schedule must be one of {', '.join(get_args(Kind))}, but got {self.kind!r}"
            )
        for name in ("warmup_epochs", "freeze_fc_epochs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} >= 0 must hold, but got {getattr(self, name)}")
        if list(self.milestones) != sorted(self.milestones):
            raise ConfigError(f"milestones must ascend, but got {list(self.milestones)}")
        if self.kind == "steps" and not self.milestones:
            raise ConfigError("schedule=steps needs milestones, for instance milestones=[150,225]")
        for name in ("gamma", "power"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} > 0 must hold, but got {getattr(self, name)}")
        if self.kind in ("cosine", "polynomial") and not (self.epochs and self.epochs > 0):
            raise ConfigError(
                f"schedule={self.kind} needs its length, but got epochs={self.epochs}"
            )

    def factor(self, update: int, updates_per_epoch: float) -> float:
        """Return the factor of the learning rate at update number `update`, counted from 0."""
        warmup = self.warmup_epochs * updates_per_epoch
        rise = min(1.0, (update + 1) / warmup) if warmup > 0 else 1.0
        epoch = update / updates_per_epoch
        if self.kind == "steps":
            # A hair's breadth of slack, so that update 3·n of n a third is epoch 3, not 2.999….
            return rise * float(self.gamma ** bisect.bisect_right(self.milestones, epoch + 1e-9))
        if self.kind == "cosine" and self.epochs is not None:
            return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / self.epochs)))
        if self.kind == "polynomial" and self.epochs is not None:
            length = self.epochs - self.warmup_epochs
            after = max(0.0, epoch - self.warmup_epochs)
            left = 1.0 - min(1.0, after / length) if length > 0 else 1.0
            return float(rise * left**self.power)
        return rise

    def freezes_fc(self, update: int, updates_per_epoch: float) -> bool:
        """Return whether linear layers are kept as they are at update number `update`."""
        return update < round(self.freeze_fc_epochs * updates_per_epoch)

    def bind(self, updates_per_epoch: float) -> BoundSchedule:
        """Return a callable from an optimiser to torch's scheduler, stepped once an update."""
        return BoundSchedule(schedule=self, updates_per_epoch=updates_per_epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSchedule:
    """A schedule for a known number of updates per epoch. A class, because lambdas do not pickle.

    Args:
        schedule: over epochs.
        updates_per_epoch: batches per epoch divided by M.
    """

    schedule: Schedule
    updates_per_epoch: float

    def __call__(self, optimizer: Optimizer) -> LRScheduler:
        """Return torch's scheduler for `optimizer`."""
        return LambdaLR(optimizer, self.factor)

    def factor(self, update: int) -> float:
        """Return the factor at update number `update`."""
        return self.schedule.factor(update, self.updates_per_epoch)

    def freezes_fc(self, update: int) -> bool:
        """Return whether linear layers are kept as they are at update number `update`."""
        return self.schedule.freezes_fc(update, self.updates_per_epoch)


def linear_scaling(base_lr: float, samples: int, base_samples: int) -> float:
    """Return gamma_scale = gamma_base · B / B_base (4.3), the rate of B samples an update.

    >>> linear_scaling(0.1, 8192, 128)
    6.4
    """
    if base_samples < 1 or samples < 1:
        raise ConfigError(
            f"B >= 1 and B_base >= 1 must hold, but got (B={samples}, B_base={base_samples})"
        )
    return base_lr * samples / base_samples
