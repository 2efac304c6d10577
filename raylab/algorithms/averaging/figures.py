"""What a replica counts between two rows of metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from raylab.algorithms.stage.figures import correct_predictions

__all__ = ["WorkerFigures", "samples_of"]

_LOOK_EVERY = 32
"""Steps between two looks at losses on a GPU: each look waits for it."""


_SUMS = ("loss_sum", "samples", "correct", "blocked_s")


class WorkerFigures:
    """Sums since the last row.

    Args:
        clock: seconds, for the time blocked.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._losses: list[tuple[Tensor, int, Tensor | None]] = []
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._begin()

    def trained(self, loss: Tensor, output: Any, target: Any) -> None:
        """Count the loss of a training batch, on its device."""
        correct = None
        if isinstance(output, Tensor) and isinstance(target, Tensor):
            correct = correct_predictions(output.detach(), target)
        self._losses.append((loss.detach(), samples_of(target), correct))

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
        """Return loss sum, samples, correct predictions and seconds blocked; begin anew.

        `correct` is NaN where no prediction can be called correct.
        """
        self._fetched()
        for before, after in self._waits:
            after.synchronize()
            self.blocked_s += before.elapsed_time(after) / 1000
        found = {
            "loss_sum": self.loss_sum,
            "samples": float(self.samples),
            "correct": self.correct,
            "blocked_s": self.blocked_s,
        }
        self._begin()
        return found

    def state(self) -> dict[str, float]:
        """Return the sums since the last row, to go on from with `restore`."""
        self._fetched()
        return {name: getattr(self, name) for name in _SUMS}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` has returned."""
        for name in _SUMS:
            setattr(self, name, state[name])

    def _fetched(self) -> bool:
        for loss, samples, correct in self._losses:
            self.loss_sum += float(loss) * samples
            self.samples += samples
            self.correct += float("nan") if correct is None else float(correct)
        self._losses.clear()
        return self.loss_sum - self.loss_sum == 0

    def _begin(self) -> None:
        self.loss_sum = 0.0
        self.samples = 0
        self.correct = 0.0
        self.blocked_s = 0.0
        self._waits.clear()


def samples_of(target: Any) -> int:
    """Return the samples of a batch, by the first tensor of its labels."""
    first = next((t for t in _pytree.tree_leaves(target) if isinstance(t, Tensor)), None)
    return 1 if first is None or not first.ndim else first.shape[0]
