"""A small convolutional network in two stages, to prove that the peers work."""

from __future__ import annotations

from torch import nn

from benchmarks.peers.workload import Workload

__all__ = ["tiny_stages", "tiny_workload"]

_CHANNELS = 16
_CLASSES = 10


def tiny_stages() -> list[nn.Module]:
    """Build two stages for images of shape (3, 16, 16); no batch normalisation, no dropout."""
    return [
        nn.Sequential(
            nn.Conv2d(3, _CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1),
            nn.ReLU(),
        ),
        nn.Sequential(
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(_CHANNELS * 8 * 8, _CLASSES),
        ),
    ]


def tiny_workload(batch_size: int = 32) -> Workload:
    """Describe the training of the small network."""
    return Workload(stages=tiny_stages, input_shape=(3, 16, 16), batch_size=batch_size)
