"""Copies of a user's modules, and their extra states: what a deepcopy and a state_dict leave out.

A module whose hooks make a weight from others before every forward (the older weight and spectral
norm, pruning) holds the last one with its graph, which cannot be copied and need not be. A class
that `torch.nn.utils.parametrize` has made refuses to be pickled, since its maker does not know
where it is read; here it is read by the same version of torch.
"""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = [
    "copied_module",
    "copied_state",
    "extra_states",
    "graphless",
    "let_travel",
    "load_extra_states",
]

EXTRA = "_extra_state"
"""Ends the key of an extra state in a state_dict."""


def copied_module(module: nn.Module) -> nn.Module:
    """Return a copy; tensors that were computed from others come without their graph."""
    return copy.deepcopy(module, graphless(module))


def graphless(module: nn.Module) -> dict[int, Any]:
    """Return a memo for `copy.deepcopy` of the module, with what was computed from others."""
    computed = [
        value
        for each in module.modules()
        for value in vars(each).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return {id(value): value.detach().clone() for value in computed}


def let_travel(module: nn.Module) -> None:
    """Let parametrized modules be pickled from this process."""
    for each in module.modules():
        if parametrize.is_parametrized(each):
            copyreg.pickle(type(each), _reduced)


def extra_states(module: nn.Module) -> dict[str, Any]:
    """Return copies of the extra states of all modules, by their keys in the state_dict."""
    return {
        f"{name}.{EXTRA}" if name else EXTRA: copied_state(each.get_extra_state())
        for name, each in module.named_modules()
        if type(each).get_extra_state is not nn.Module.get_extra_state
    }


def load_extra_states(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Give the modules their extra states; one that was not saved stays."""
    if not saved:
        return
    for name, each in module.named_modules():
        key = f"{name}.{EXTRA}" if name else EXTRA
        if key in saved:
            each.set_extra_state(copied_state(saved[key]))


def copied_state(value: Any) -> Any:
    """Return a copy of what a state_dict may hold, its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) is dict:
        return {key: copied_state(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied_state(each) for each in value)
    return copy.deepcopy(value)


def _reduced(module: nn.Module) -> tuple[Any, ...]:
    return copyreg.__newobj__, (type(module),), dict(vars(module))  # type: ignore[attr-defined]
