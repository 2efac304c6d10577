"""What a user hands over as batches, before it matters what trains with them."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import random
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from actors.own_state import OwnState
from raylab.errors import DataError
from raylab.records.states import loadable

__all__ = ["batches_of", "check_states", "first_of", "fresh", "same_draws", "twin_of"]

_DATA = 10_000
"""Longer containers hold data: a twin shares them."""
_SHARED = (Tensor, np.ndarray, pa.Table, type, types.FunctionType, types.BuiltinFunctionType)


def batches_of(batches: Iterable[Any]) -> int | None:
    """Return how many batches an epoch has; None: they do not say."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def first_of(batches: Iterable[Any]) -> Any:
    """Return the first batch, whatever it is; the batches and all generators stay as they are.

    Raises:
        DataError: there is none, or there can be no second time.
    """
    if not isinstance(batches, Iterable):
        raise DataError(f"batches must be iterable, but got {type(batches).__name__}")
    with same_draws(batches):
        twin = _looked_at(batches)
        iterator = iter(twin)
        if iterator is twin:
            raise DataError(
                "batches must give a new iterator every time, but got a one-shot iterator "
                f"({type(batches).__name__}): give a list, a DataLoader or an object with __iter__"
            )
        for batch in iterator:
            return batch
    raise DataError("batches must not be empty, but there is not one")


def fresh(batches: Any) -> Any:
    """Return a DataLoader that was iterated over already as one that was not: it can travel."""
    if isinstance(batches, DataLoader) and batches._iterator is not None:
        batches = copy.copy(batches)
        batches._iterator = None
    return batches


def check_states(**batches: Any) -> None:
    """Check that a checkpoint can hold the state that batches keep themselves.

    Args:
        batches: re-iterables of batches, by name.

    Raises:
        DataError: it cannot; the message says where the state is.
    """
    twins = {name: _looked_at(each) for name, each in batches.items()}
    with same_draws():
        try:
            loadable(OwnState(**twins).state())
        except Exception as error:
            raise DataError(
                "the state that batches keep themselves (generators, state_dict) must fit into a "
                f"checkpoint, but {type(error).__name__}: {error}: let state_dict return tensors, "
                "arrays, numbers and texts, or train without checkpoints (checkpoint_every=0, "
                "checkpoint_minutes=0)"
            ) from error


def twin_of(value: Any) -> Any:
    """Return a copy as another process would get it; tensors, arrays and long lists are shared.

    What iterating leaves in it, an open file or a generator that has moved, is the copy's alone.

    Raises:
        Exception: it cannot be pickled; of what kind, its makers choose.
    """
    written = io.BytesIO()
    pickler = _Pickler(written)
    pickler.dump(fresh(value))
    return _Unpickler(io.BytesIO(written.getvalue()), pickler.shared).load()


@contextlib.contextmanager
def same_draws(*things: Any) -> Iterator[None]:
    """Leave the process's generators, and those in some things, as they are in spite of a block."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), OwnState(things=things).unmoved():
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _looked_at(batches: Iterable[Any]) -> Iterable[Any]:
    """Return a twin to look at, where there can be one."""
    # A generator is none of those: it is told what it is.
    with contextlib.suppress(Exception):
        return twin_of(batches)  # type: ignore[no-any-return]
    return batches


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.shared: list[Any] = []

    def persistent_id(self, value: Any) -> int | None:
        """Return the place among what is shared, None for what is copied."""
        long = isinstance(value, (list, tuple, dict, set, bytes, str)) and len(value) > _DATA
        bound = isinstance(value, types.BuiltinMethodType) and not (
            value.__self__ is None or isinstance(value.__self__, types.ModuleType)
        )
        if bound or not (long or isinstance(value, (*_SHARED, types.ModuleType))):
            return None
        self.shared.append(value)
        return len(self.shared) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: list[Any]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, place: Any) -> Any:
        """Return what is shared."""
        return self._shared[place]
