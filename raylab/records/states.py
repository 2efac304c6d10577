"""What a checkpoint's state may hold: what `torch.load(weights_only=True)` gives back."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from raylab.errors import CheckpointError

__all__ = ["loadable"]

_AS_THEY_ARE = (type(None), bool, float, complex, str, torch.Size, torch.dtype, torch.device)
_LONGEST_INT = 8 * 255 - 1
"""Bits, without the sign; torch's safe reader takes no longer integers."""


def loadable(state: Any) -> Any:
    """Return the state, checked, in containers of its own; no tensor's memory is copied.

    Tensors come back as plain ones, without gradient, hooks and attributes, and a defaultdict as
    the dict that it is equal to. Types are compared exactly: a subclass is pickled by its name,
    which the safe reader refuses.

    Raises:
        CheckpointError: it holds something that could not be loaded again; the message says where.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"a state must be a dictionary, but got a {_title(state)}")
    try:
        return _walk(state, "state")
    except RecursionError:
        raise CheckpointError(
            "a state must be a tree, but it is nested too deep, or holds itself"
        ) from None


def _walk(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is int and value.bit_length() <= _LONGEST_INT:
        return value
    if kind in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_meta:
        return value.detach()
    if kind in (dict, OrderedDict, Counter, defaultdict):
        made: Any = {} if kind is defaultdict else kind()
        for key, each in value.items():
            made[_key(key, where)] = _walk(each, f"{where}[{key!r}]")
        return made
    if kind in (list, tuple):
        return kind(_walk(each, f"{where}[{place}]") for place, each in enumerate(value))
    if kind is set:
        return {_key(each, where) for each in value}
    raise CheckpointError(
        f"a state must be of dictionaries, lists, tuples, tensors with values, numbers, texts and "
        f"None, but {where} is a {_title(value)}: turn it into one of them"
    )


def _key(key: Any, where: str) -> Any:
    if isinstance(key, Tensor):
        raise CheckpointError(f"a key of a state must not be a tensor, but one in {where} is")
    return _walk(key, f"a key of {where}")


def _title(value: Any) -> str:
    if type(value) is int:
        return f"integer of {value.bit_length()} bits"
    if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter):
        return f"tensor on {value.device} of layout {value.layout}"
    return f"{type(value).__module__}.{type(value).__qualname__}"
