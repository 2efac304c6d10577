"""Saved replicas as the beginning of others, where the number of workers has changed.

All new replicas begin at the mean of the saved ones, so that the mean over the workers, which is
what the method trains, is the same before and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["mean_state"]


def mean_state(states: Sequence[Any]) -> Any:
    """Return the mean of nested states: of their float tensors; all else is the first's, as is a
    module's extra state, which only the module can read.

    >>> mean_state([{"w": torch.tensor(1.0), "n": 3}, {"w": torch.tensor(2.0), "n": 3}])
    {'w': tensor(1.5000), 'n': 3}

    Args:
        states: of all replicas that were saved, alike but for their numbers.
    """
    first = states[0]
    if isinstance(first, Tensor):
        if not first.is_floating_point():
            return first
        if any(each.shape != first.shape for each in states):
            return first
        return torch.stack([each.to(first.dtype) for each in states]).mean(dim=0)
    if isinstance(first, Mapping):
        return {
            key: mean_state([each[key] for each in states])
            if not str(key).endswith("_extra_state")
            and all(isinstance(each, Mapping) and key in each for each in states)
            else value
            for key, value in first.items()
        }
    if isinstance(first, (list, tuple)):
        if any(len(each) != len(first) for each in states):
            return first
        return type(first)(mean_state(each) for each in zip(*states, strict=True))
    return first
