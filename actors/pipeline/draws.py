"""The random draws of the user's batches, kept apart from those of the network.

A DataLoader draws its order from torch's global generator, which the stage's rule seeds anew for
every unit. The source therefore has a state of its own for it, which stands in the generator only
while the user's iterable runs. Python's and numpy's generators are the iterable's alone: a rule
whose network draws from them puts them back. So the draws depend on the seed and on the iterable's
own course, and can be taken up again where a checkpoint left them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["Draws"]


class Draws:
    """States of the process's generators, as the user's batches draw from them.

    Args:
        seed: of all three.
    """

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(seed).get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)

    @contextlib.contextmanager
    def drawn(self) -> Iterator[None]:
        """Put torch's state into its generator for a block, take it out as the block leaves it."""
        generator = torch.default_generator
        before = generator.get_state()
        generator.set_state(self._torch)
        try:
            yield
        finally:
            self._torch = generator.get_state()
            generator.set_state(before)

    def state(self) -> dict[str, Any]:
        """Return the states as tensors and plain numbers."""
        kept: dict[str, Any] = dict(np.random.get_state(legacy=False))
        words = kept.pop("state")
        return {
            "torch": self._torch.clone(),
            "python": random.getstate(),
            "numpy": {
                **kept,
                "key": torch.from_numpy(words["key"].astype(np.int64)),
                "pos": int(words["pos"]),
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._torch = state["torch"].clone()
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        kept = dict(state["numpy"])
        key, pos = kept.pop("key"), kept.pop("pos")
        np.random.set_state({**kept, "state": {"key": key.numpy().astype(np.uint32), "pos": pos}})
