"""Modelled compute: a stage rule that naps for the time that a stage would compute.

Napping stages share no processor, so what a pipeline loses against the ideal is what its loops,
mailboxes, wires and actors cost, on any machine. The rule stands for all that a stage computes,
autograd and optimiser included; a nap ends when its time has passed since the call began.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from actors.units import Tensors, Unit
from raylab.algorithms.stage.figures import StageFigures

__all__ = ["BATCH", "WIDTH", "NapBatches", "NapRule"]

BATCH = 128
WIDTH = 1024
"""128 x 1024 float32: 512 KB of features, and as much of gradients."""
_SPIN_S = 0.0003
"""The end of a nap is awaited, because sleep wakes up late by about that much."""


def _nap(since: float, seconds: float) -> None:
    left = since + seconds - time.perf_counter() - _SPIN_S
    if left > 0:
        time.sleep(left)
    while time.perf_counter() < since + seconds:
        pass


class NapRule:
    """One stage as `actors.pipeline.protocols.StageRule`, with no numbers in it.

    Args:
        forward_s: seconds of a forward of 128 samples.
        backward_s: seconds of a backward and its update.
        last: whether the stage has the loss.
        replays: whether a backward re-runs the forward (FR, below the last stage).
    """

    def __init__(self, forward_s: float, backward_s: float, last: bool, replays: bool) -> None:
        self.forward_s, self.backward_s = forward_s, backward_s
        self.last = last
        self.replays = replays and not last
        self._updates = 0
        self._open: dict[tuple[int, int], tuple[int, int]] = {}
        self._window: list[int] = []
        self._figures = StageFigures()

    def forward(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:  # noqa: ARG002
        """Nap; return new features."""
        began = time.perf_counter()
        samples = _first(inputs).shape[0]
        self._open[unit.batch, unit.part] = (self._updates, samples)
        features = () if self.last else (torch.empty(samples, WIDTH),)
        self._figures.train.add(0.0, samples, None)
        _nap(began, self.forward_s * samples / BATCH)
        return features

    def backward(self, unit: Unit, gradients: Tensors) -> Tensors:  # noqa: ARG002
        """Nap; return a new gradient."""
        began = time.perf_counter()
        version, samples = self._open.pop((unit.batch, unit.part))
        if unit.part + 1 == unit.parts:
            self._window.append(self._updates - version)
        again = self.forward_s if self.replays else 0.0
        gradient = torch.empty(samples, WIDTH)
        _nap(began, (self.backward_s + again) * samples / BATCH)
        return (gradient,)

    def update(self) -> None:
        """Count the staleness of the window."""
        self._updates += 1
        self._figures.applied(self._window)
        self._window = []

    def evaluate(self, inputs: Tensors, labels: Tensors) -> Tensors:  # noqa: ARG002
        """Return the features as they came."""
        return inputs

    def report(self) -> dict[str, Any]:
        """Return what has been counted since the last report."""
        return self._figures.take()

    def state(self) -> dict[str, Tensor]:
        """There are no weights."""
        return {}

    def measure(self, inputs: Tensors, repeats: int) -> list[tuple[float, float]]:
        """Time naps."""
        times = []
        for index in range(repeats):
            began = time.perf_counter()
            self.forward(Unit(index), inputs, ())
            middle = time.perf_counter()
            self.backward(Unit(index), ())
            # What a replay adds is counted by whoever asks.
            again = self.forward_s if self.replays else 0.0
            times.append((middle - began, time.perf_counter() - middle - again))
        self._window = []
        self._figures.take()
        return times


def _first(tensors: Tensors) -> Tensor:
    (tensor,) = tensors
    if tensor is None:
        raise TypeError("a napping stage needs features")
    return tensor


class NapBatches:
    """`count` batches of zeros; they travel to the actor as a number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = torch.zeros(BATCH, WIDTH), torch.zeros(BATCH)
        return iter([(x, y)] * self.count)
