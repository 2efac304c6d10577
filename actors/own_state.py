"""The state that a user's iterable keeps itself, beside the process's generators.

A DataLoader with `generator=`, a sampler or data set with a generator of its own, and whatever has
`state_dict` and `load_state_dict`, go on from epoch to epoch by what they hold. They are found by
walking through the attributes of the iterable, and named by the way there, so that a process that
is given the same iterable finds them again.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

__all__ = ["OwnState"]

_MOST_ITEMS = 1000
"""Longer containers are data, not structure."""
_MOST_OBJECTS = 20_000
_LEAVES = (str, bytes, int, float, complex, bool, type(None), Tensor, np.ndarray, type)
# A DataLoader's running iterator: processes and queues, whose state follows from the loader's.
_PASSING = ("_iterator",)
_ARRAY = "numpy array"


class OwnState:
    """The generators and stateful objects inside of some iterables.

    >>> loader = {"sampler": torch.Generator().manual_seed(5)}
    >>> own = OwnState(train=loader)
    >>> before = own.state()
    >>> first = torch.rand(2, generator=loader["sampler"])
    >>> own.restore(before)
    >>> torch.equal(first, torch.rand(2, generator=loader["sampler"]))
    True

    Args:
        roots: the iterables, by name.
    """

    def __init__(self, **roots: Any) -> None:
        self._roots = roots

    def state(self) -> dict[str, Any]:
        """Return all states by the way to them, in tensors, numbers and texts of their own."""
        found = list(_stateful(self._roots))
        # The generators first: a loader may draw from one where it tells its state.
        found.sort(key=lambda pair: not isinstance(pair[1], _GENERATORS))
        return {way: _kept(each) for way, each in found}

    @contextlib.contextmanager
    def unmoved(self) -> Iterator[None]:
        """Leave all generators as they are, whatever a block draws from them."""
        found = [each for _, each in _stateful(self._roots) if isinstance(each, _GENERATORS)]
        before = [_kept(each) for each in found]
        try:
            yield
        finally:
            for each, state in zip(found, before, strict=True):
                _give(each, state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Give everything that is found the state that was kept for it."""
        for way, each in _stateful(self._roots):
            if way in state:
                _give(each, state[way])


def _stateful(roots: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what has a state of its own, each once, with the way to it."""
    seen: set[int] = set()
    # What was pushed last comes first: reversed, so that the order is that of the attributes.
    todo = list(reversed(list(roots.items())))
    while todo and len(seen) < _MOST_OBJECTS:
        way, value = todo.pop()
        if isinstance(value, (*_LEAVES, types.ModuleType)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, _GENERATORS):
            yield way, value
            continue
        if _has_state(value):
            yield way, value
        todo.extend((f"{way}.{name}", each) for name, each in reversed(_inside(value)))


def _inside(value: Any) -> list[tuple[str, Any]]:
    """Return what an object is made of, by name."""
    if isinstance(value, dict):
        return [(str(k), v) for k, v in value.items()] if len(value) <= _MOST_ITEMS else []
    if isinstance(value, (list, tuple)):
        return [(str(k), v) for k, v in enumerate(value)] if len(value) <= _MOST_ITEMS else []
    if isinstance(value, functools.partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        return [("self", value.__self__)]
    if isinstance(value, types.FunctionType):
        return _closure(value)
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return [(name, each) for name, each in found.items() if name not in _PASSING]


def _closure(function: types.FunctionType) -> list[tuple[str, Any]]:
    given: list[tuple[str, Any]] = [
        ("defaults", function.__defaults__),
        ("keywords", function.__kwdefaults__),
    ]
    try:
        found = inspect.getclosurevars(function).nonlocals
    except ValueError:  # a name that is not bound yet
        return given
    return [*given, *found.items()]


def _has_state(value: Any) -> bool:
    # Between two epochs a loader's state is that of its parts, which are found by themselves; to
    # tell it a loader would begin an iterator, with draws of its own.
    if isinstance(value, (nn.Module, DataLoader)):
        return False
    kind = type(value)
    return callable(getattr(kind, "state_dict", None)) and callable(
        getattr(kind, "load_state_dict", None)
    )


_GENERATORS = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
)


def _kept(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return _plain(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return _plain(value.get_state(legacy=False))
    if isinstance(value, np.random.BitGenerator):
        return _plain(value.state)
    return _plain(value.state_dict())


def _give(value: Any, state: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(state)
    elif isinstance(value, random.Random):
        version, words, gauss = state
        value.setstate((version, tuple(words), gauss))
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = _back(state)
    elif isinstance(value, np.random.RandomState):
        value.set_state(_back(state))
    elif isinstance(value, np.random.BitGenerator):
        value.state = _back(state)
    else:
        value.load_state_dict(_back(state))


def _plain(value: Any) -> Any:
    """Return a state whose arrays are tensors, and whose tensors nobody else writes to."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        whole = np.ascontiguousarray(value)
        bytes_ = torch.from_numpy(whole.reshape(-1).view(np.uint8).copy())
        return {_ARRAY: bytes_, "dtype": whole.dtype.str, "shape": list(value.shape)}
    if type(value) is dict:
        return {key: _plain(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(each) for each in value)
    return value


def _back(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is dict:
        if _ARRAY in value:
            array = np.frombuffer(value[_ARRAY].numpy().tobytes(), dtype=value["dtype"])
            return array.reshape(value["shape"]).copy()
        return {key: _back(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_back(each) for each in value)
    return value
