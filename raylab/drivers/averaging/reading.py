"""A DataLoader read in pieces: in the order that it would draw, the samples that are wanted."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from actors.own_state import OwnState
from raylab.drivers.batches import same_draws, twin_of

__all__ = ["KeyedDraws", "Route", "index_order", "reader_of", "reads_own"]


def reads_own(batches: Any) -> bool:
    """Tell whether a worker may read the samples of its own batches only.

    So it is for a DataLoader over a data set that is asked by index and draws nothing: one that
    draws, from whatever generator, would draw otherwise if samples of others were left out. The
    first batch's samples tell; the batches stay as they are.
    """
    if getattr(type(batches), "__iter__", None) is not DataLoader.__iter__:
        return False
    if isinstance(batches.dataset, IterableDataset):
        return False
    with same_draws(batches):
        try:
            twin = twin_of(batches)
            indices = next(iter(_index_sampler(twin)))
            own = OwnState(data=twin.dataset, collate=twin.collate_fn)
            before = own.state(), KeyedDraws.now()
            samples = [twin.dataset[i] for i in (indices if _batched(twin) else [indices])]
            twin.collate_fn(samples if _batched(twin) else samples[0])
            return _same((own.state(), KeyedDraws.now()), before)
        except Exception:
            return False


def index_order(loader: Any, epoch: int) -> Iterator[Any]:
    """Return the order of an epoch, drawing all that the loader itself would draw for it."""
    indices = iter(_index_sampler(loader))
    if not (epoch and loader.persistent_workers and loader.num_workers):
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    return indices


class KeyedDraws:
    """States of the process's generators, of somebody who draws now and then.

    Args:
        key: that they begin with.
    """

    def __init__(self, key: int) -> None:
        self._states = (
            torch.Generator().manual_seed(key).get_state(),
            random.Random(key).getstate(),  # noqa: S311 - no secret
            np.random.RandomState(key % 2**32).get_state(),
        )

    @staticmethod
    def now() -> tuple[Any, ...]:
        """Return the states of now."""
        return torch.get_rng_state(), random.getstate(), np.random.get_state()

    @contextlib.contextmanager
    def drawn(self) -> Iterator[None]:
        """Put the states into the generators for a block; take them out as it leaves them."""
        with same_draws():
            torch.set_rng_state(self._states[0])
            random.setstate(self._states[1])
            np.random.set_state(self._states[2])
            yield
            self._states = self.now()


class Route:
    """A sampler of what a worker reads next."""

    def __init__(self) -> None:
        self.ahead: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.ahead


def reader_of(loader: Any, route: Route) -> DataLoader[Any]:
    """Return a loader like the user's, but of what the route says."""
    sampler: dict[str, Any] = (
        {"batch_sampler": route} if _batched(loader) else {"batch_size": None, "sampler": route}
    )
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
            "worker_init_fn": loader.worker_init_fn,
            "timeout": loader.timeout,
        }
    return DataLoader(
        loader.dataset,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        **sampler,
        **workers,
    )


def _batched(loader: Any) -> bool:
    return loader.batch_sampler is not None


def _index_sampler(loader: Any) -> Iterable[Any]:
    found: Iterable[Any] = loader.batch_sampler if _batched(loader) else loader.sampler
    return found


def _same(one: Any, other: Any) -> bool:
    """Tell whether two nests of tensors, arrays and numbers are equal."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
