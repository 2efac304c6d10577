"""The papers' own settings by name, so that their experiments are one word."""

from __future__ import annotations

from dataclasses import dataclass

from raylab.optimizers.schedules import Schedule, linear_scaling

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Optimiser and schedule of a paper's experiment.

    Args:
        source: paper and section.
        lr: learning rate, or of a batch of `base` samples if `scaled`.
        scaled: the rate is lr · b · M / `base` (b: batch size).
        momentum: of the optimiser.
        weight_decay: of the optimiser.
        schedule: over epochs.
        epochs: of the experiment.
        batch_size: of the experiment.
        optimizer: whose settings they are.
        base: samples, see `scaled`.
    """

    source: str
    lr: float
    scaled: bool
    momentum: float
    weight_decay: float
    schedule: Schedule
    epochs: int
    batch_size: int
    optimizer: str = "sgd"
    base: int = 256

    def learning_rate(self, batch_size: int, accumulate: int) -> float:
        """Return the rate for batches of `batch_size` samples, `accumulate` of them an update.

        >>> RECIPES["adl"].learning_rate(32, 4)
        0.05
        """
        if not self.scaled:
            return self.lr
        return linear_scaling(self.lr, batch_size * accumulate, self.base)


_HUO = Schedule(kind="steps", milestones=(150, 225), gamma=0.1)

RECIPES: dict[str, Recipe] = {
    "ddg": Recipe(
        source="HUO 5.5.2",
        lr=0.01,
        scaled=False,
        momentum=0.9,
        weight_decay=5e-4,
        schedule=_HUO,
        epochs=300,
        batch_size=128,
    ),
    "fr": Recipe(
        source="HUO 6.5.1",
        lr=0.01,
        scaled=False,
        momentum=0.9,
        weight_decay=5e-4,
        schedule=_HUO,
        epochs=300,
        batch_size=128,
    ),
    "adl": Recipe(
        source="ADL VI, CIFAR-10",
        lr=0.1,
        scaled=True,
        momentum=0.9,
        weight_decay=5e-4,
        schedule=Schedule(kind="steps", warmup_epochs=3, milestones=(150, 225, 275), gamma=0.1),
        epochs=300,
        batch_size=32,
    ),
    "adl_imagenet": Recipe(
        source="ADL VI, ImageNet",
        lr=0.1,
        scaled=True,
        momentum=0.9,
        weight_decay=1e-4,
        schedule=Schedule(kind="steps", warmup_epochs=3, milestones=(30, 60, 80), gamma=0.1),
        epochs=90,
        batch_size=32,
    ),
    "lars": Recipe(
        source="HUO 4.4.1, 4.4.2",
        lr=0.1,
        scaled=True,
        momentum=0.9,
        weight_decay=0.0,
        schedule=Schedule(kind="polynomial", warmup_epochs=20, epochs=200),
        epochs=200,
        batch_size=8192,
        optimizer="lars",
        base=128,
    ),
    "clars": Recipe(
        source="HUO 4.4.4",
        lr=0.1,
        scaled=True,
        momentum=0.9,
        weight_decay=0.0,
        schedule=Schedule(),
        epochs=20,
        batch_size=8192,
        optimizer="clars",
        base=128,
    ),
}
"""Recipes by name. Batch size and epochs are the papers'; a run may choose its own."""
