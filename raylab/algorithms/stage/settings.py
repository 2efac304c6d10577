"""What the computation of one stage is told: its numbers, its units, its factories."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raylab.algorithms.stage.cut_features import CutFeatures
from raylab.algorithms.stage.weight_versions import WeightVersion

__all__ = [
    "OptimizerFactory",
    "ScheduleFactory",
    "StageSettings",
    "Tensors",
    "Unit",
    "draw_key",
]

Tensors = tuple[Tensor | None, ...]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]


class Unit(Protocol):
    """A batch or micro-batch, see `actors.units.Unit`."""

    @property
    def batch(self) -> int:
        """Return the index of the batch."""
        ...

    @property
    def part(self) -> int:
        """Return the index of the micro-batch."""
        ...

    @property
    def parts(self) -> int:
        """Return the number of micro-batches."""
        ...

    @property
    def share(self) -> float:
        """Return its samples as a share of the batch's."""
        ...

    @property
    def loss_share(self) -> float:
        """Return the weight of its loss in the batch's."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """The numbers of one stage.

    Args:
        stage: 0 at the input.
        stages: K.
        delay: D, batches between a forward and its backward; None: until the window ends.
        accumulate: M, batches per update.
        flush: whether the pipeline empties before every update (then no version is kept).
        replay: re-run the forward with the current weights before back-propagating.
        recompute: keep inputs instead of graphs, and re-run the forward with the weights that it
            had: the same numbers for less memory and one more forward.
        resumable: whether `save` will be called.
        weight_version: weights that a delayed backward reads.
        clip_norm: largest Euclidean norm of the stage's mean gradient, None: no limit.
        clip_value: largest magnitude of an element of it, None: no limit.
        gradient_shrink: factor of the error gradients that the stage passes down.
        precision: "float32" computes in the dtype of the weights, "bfloat16" under autocast.
        seed: of the draws inside the network, such as dropout.
        protect_inputs: the first block writes into its input, so give it a copy.
        writes_weights: a block writes into its weights in its forward.
        device: where the stage computes.
        cut: the features that the stage puts out, where it has a network of its own on them.
    """

    stage: int
    stages: int
    delay: int | None
    accumulate: int = 1
    flush: bool = False
    replay: bool = False
    recompute: bool = False
    resumable: bool = False
    weight_version: WeightVersion = "forward"
    clip_norm: float | None = None
    clip_value: float | None = None
    gradient_shrink: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    protect_inputs: bool = False
    writes_weights: bool = False
    device: str = "cpu"
    cut: CutFeatures | None = None

    @property
    def last(self) -> bool:
        """Whether the stage has the loss."""
        return self.stage == self.stages - 1


def draw_key(seed: int, stage: int, batch: int, part: int) -> int:
    """Return the seed of the draws of one unit at one stage, so that a replay draws the same."""
    text = f"{seed}/{stage}/{batch}/{part}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
