"""What a network draws from `random`, from numpy, or from a generator of its own, drawn by a key.

torch's generator costs a microsecond to seed and is seeded for every forward. Those of the host
belong to the user's batches as well and have to be put back, which costs a hundred times as much:
it is done for the networks that draw from them. Whether one does is looked at in its first
forwards and, since a block may begin to draw in a later epoch, again from time to time.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["HostDraws"]

_FIRST = 8
_EVERY = 64
"""Forwards that are looked at: the first ones, and one of so many after those."""


class HostDraws:
    """The host's generators, as the forwards of one network draw from them.

    Args:
        module: the network; generators that are attributes of its modules are its own.
    """

    def __init__(self, module: nn.Module) -> None:
        kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
        found = [t for m in module.modules() for t in vars(m).values() if isinstance(t, kinds)]
        self._own: list[Any] = list({id(each): each for each in found}.values())
        self._forwards = 0
        self._drawn = False

    @contextlib.contextmanager
    def keyed(self, key: int) -> Iterator[None]:
        """Draw from a key within; the host's generators are then as before."""
        for each in self._own:
            _seed(each, key)
        self._forwards += 1
        if not (self._drawn or self._forwards <= _FIRST or self._forwards % _EVERY == 0):
            yield
            return
        before, before_numpy = random.getstate(), np.random.get_state(legacy=False)
        random.seed(key)
        np.random.seed(key % 2**32)
        began = None if self._drawn else (random.getstate(), _place(np.random.get_state()))
        try:
            yield
            if began is not None:
                self._drawn = began != (random.getstate(), _place(np.random.get_state()))
        finally:
            random.setstate(before)
            np.random.set_state(before_numpy)


def _place(state: Any) -> tuple[Any, ...]:
    """Return where numpy's generator is: its first word changes with every 624 draws."""
    _, words, position, has_gauss, gauss = state
    return int(words[0]), position, has_gauss, gauss


def _seed(generator: Any, key: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(key)
    elif isinstance(generator, np.random.Generator):
        kind: Any = type(generator.bit_generator)
        generator.bit_generator.state = kind(key).state
    else:
        generator.seed(key % 2**32)
