"""The papers' own settings by name, so that their experiments are one word."""

from __future__ import annotations

from dataclasses import dataclass

from raylab.optimizers.schedules import Schedule

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Optimiser and schedule of a paper's experiment.

    Args:
        source: paper and section.
        lr: learning rate, or of a batch of 256 samples if `scaled`.
        scaled: the rate is lr · b · M / 256 (b: batch size).
        momentum: of SGD.
        weight_decay: of SGD.
        schedule: over epochs.
        epochs: of the experiment.
        batch_size: of the experiment.
    """

    source: str
    lr: float
    scaled: bool
    momentum: float
    weight_decay: float
    schedule: Schedule
    epochs: int
    batch_size: int

    def learning_rate(self, batch_size: int, accumulate: int) -> float:
        """Return the rate for batches of `batch_size` samples, `accumulate` of them an update.

        >>> RECIPES["adl"].learning_rate(32, 4)
        0.05
        """
        return self.lr * batch_size * accumulate / 256 if self.scaled else self.lr


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
}
"""Recipes by name. Batch size and epochs are the papers'; a run may choose its own."""
