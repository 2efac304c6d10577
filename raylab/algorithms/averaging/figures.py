"""What a replica counts between two rows of metrics."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from raylab.algorithms.stage.loss_terms import LossTerms
from raylab.algorithms.stage.predictions import Predictions, predictions

__all__ = ["WorkerFigures", "samples_of"]

_LOOK_EVERY = 32
"""Steps between two looks at losses on a GPU: each look waits for it."""


_SUMS = ("loss_sum", "weight", "samples", "correct", "counted", "blocked_s")


class WorkerFigures:
    """Sums since the last row.

    Args:
        terms: of the loss.
        clock: seconds, for the time blocked.
    """

    def __init__(
        self, terms: LossTerms | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._terms = terms or LossTerms()
        self._clock = clock
        self._losses: list[tuple[Tensor, int, Tensor | int, Predictions | None]] = []
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._begin()

    def trained(self, loss: Tensor, output: Any, target: Any) -> None:
        """Count the loss of a training batch, on its device."""
        samples = samples_of(target)
        weight: Tensor | int = samples
        found = None
        if isinstance(target, Tensor) and target.ndim:
            weight = self._terms.weight_of([target], samples)
            if isinstance(output, Tensor):
                found = predictions(output.detach(), target, self._terms)
        self._losses.append((loss.detach(), samples, weight, found))

    def tested(self, loss: Tensor, output: Any, target: Any) -> None:
        """Count the loss of a test batch; one without a term, whose mean is NaN, has none."""
        self.trained(loss, output, target)
        loss, samples, weight, found = self._losses[-1]
        if not float(weight):
            self._losses[-1] = (torch.zeros_like(loss), samples, weight, found)

    def finite(self, device: str) -> bool:
        """Tell whether the losses so far are finite, as far as one can know without waiting."""
        if device.startswith("cuda") and len(self._losses) < _LOOK_EVERY:
            return True
        return self._fetched()

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Count the time that is waited for the network inside the block."""
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if on_gpu:
            # There the thread runs ahead: what waits is the stream.
            before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            before.record()
        began = self._clock()
        try:
            yield
        finally:
            self.blocked_s += self._clock() - began
            if on_gpu:
                after.record()
                self._waits.append((before, after))

    def take(self) -> dict[str, float]:
        """Return sums of losses and of their weights, samples, correct predictions, labels that
        could be predicted, and seconds blocked; begin anew.

        `correct` is NaN where no prediction can be called correct.
        """
        self._fetched()
        for before, after in self._waits:
            after.synchronize()
            self.blocked_s += before.elapsed_time(after) / 1000
        found = {name: float(getattr(self, name)) for name in _SUMS}
        self._begin()
        return found

    def state(self) -> dict[str, float]:
        """Return the sums since the last row, to go on from with `restore`."""
        self._fetched()
        return {name: getattr(self, name) for name in _SUMS}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` has returned."""
        for name in _SUMS:
            # Runs of versions without the others had a weight of 1, and counted every sample.
            setattr(self, name, state[name if name in state else "samples"])

    def _fetched(self) -> bool:
        for loss, samples, weight, found in self._losses:
            # A sum over the samples is told as their mean.
            weighs = 1.0 if self._terms.sums else float(weight)
            self.loss_sum += float(loss) * weighs
            self.weight += float(weight)
            self.samples += samples
            self.correct += math.nan if found is None else float(found.correct)
            self.counted += 0 if found is None else int(found.counted)
        self._losses.clear()
        return self.loss_sum - self.loss_sum == 0

    def _begin(self) -> None:
        self.loss_sum = 0.0
        self.weight = 0.0
        self.samples = 0
        self.correct = 0.0
        self.counted = 0
        self.blocked_s = 0.0
        self._waits.clear()


def samples_of(target: Any) -> int:
    """Return the samples of a batch, by the first tensor of its labels."""
    first = next((t for t in _pytree.tree_leaves(target) if isinstance(t, Tensor)), None)
    return 1 if first is None or not first.ndim else first.shape[0]
