"""What every peer trains, and what it answers.

Each peer sees the same initial weights, the same batch and the same optimiser, so the loss after n
batches is the same in all of them, up to rounding (for networks without dropout and batch
normalisation): `Sample.last_loss` shows that a peer did the work that it was timed for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["WARM_UP_BATCHES", "Sample", "Workload", "check_timing", "sample_of"]

WARM_UP_BATCHES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A classifier cut into stages, its batch and its optimiser.

    `stages` must be importable, since fresh processes call it; it must build all K stages, first to
    last, from torch's global random state only.
    """

    stages: Callable[[], list[nn.Module]]
    input_shape: tuple[int, ...]  # of one sample, without the batch dimension
    batch_size: int  # samples per optimiser step, over all processes
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size >= 1` must hold, but got {self.batch_size}")

    def build(self) -> list[nn.Module]:
        """Build all stages with the seed's weights."""
        torch.manual_seed(self.seed)
        return self.stages()

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Make SGD with momentum and weight decay."""
        return torch.optim.SGD(
            module.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def batch(self, stages: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
        """Draw the batch: inputs, shape = (batch_size, *input_shape), and labels, (batch_size,)."""
        classes = self.shapes(stages)[-1][-1]
        generator = torch.Generator().manual_seed(self.seed + 1)
        inputs = torch.randn(self.batch_size, *self.input_shape, generator=generator)
        labels = torch.randint(classes, (self.batch_size,), generator=generator)
        return inputs, labels

    def shapes(self, stages: Sequence[nn.Module]) -> list[tuple[int, ...]]:
        """Find the shape of one sample at the K + 1 borders, from the input to the logits."""
        shapes = [self.input_shape]
        value = torch.zeros(1, *self.input_shape)
        for stage in stages:
            training = stage.training
            stage.eval()  # or batch normalisation would refuse one sample, and count it
            with torch.no_grad():
                value = stage(value)
            stage.train(training)
            shapes.append(tuple(value.shape[1:]))
        return shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One timing of one peer."""

    samples_per_s: float
    batches: int
    seconds: float  # from the first process's start to the last process's end
    batch_seconds: tuple[float, ...]  # of each batch, at rank 0
    last_loss: float  # of the last timed batch, before its step

    @property
    def median_batch_s(self) -> float:
        """Median wall time of a batch, seconds."""
        return statistics.median(self.batch_seconds)


def sample_of(batch_size: int, rank_times: Sequence[Sequence[float]], last_loss: float) -> Sample:
    """Make a Sample from clock readings.

    Args:
        batch_size: samples per batch, over all ranks.
        rank_times: for each rank `batches + 1` readings of `time.perf_counter`, at the start and
            after each batch. All processes of a machine read the same clock.
        last_loss: loss of the last batch.
    """
    if not math.isfinite(last_loss):
        raise ValueError(f"the loss must be finite, but is {last_loss}: the training diverged")
    batches = len(rank_times[0]) - 1
    seconds = max(times[-1] for times in rank_times) - min(times[0] for times in rank_times)
    first = rank_times[0]
    return Sample(
        samples_per_s=batches * batch_size / seconds,
        batches=batches,
        seconds=seconds,
        batch_seconds=tuple(after - before for before, after in pairwise(first)),
        last_loss=last_loss,
    )


def check_timing(batches: int, warm_up: int) -> None:
    """Refuse counts that time nothing."""
    if batches < 1 or warm_up < 1:
        raise ValueError(
            "`batches >= 1` and `warm_up >= 1` must hold, "
            f"but got (batches={batches}, warm_up={warm_up})"
        )
