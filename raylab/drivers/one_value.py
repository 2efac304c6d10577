"""Batches of one sample before a batch normalisation, found before any actor starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from raylab.algorithms.stage.one_value import WAY_OUT, is_one_value
from raylab.drivers.batches import same_draws
from raylab.errors import ModelError
from raylab.planner import on_shapes

__all__ = ["batch_sizes", "check_one_value"]


def batch_sizes(batches: Iterable[Any], first: int) -> list[int]:
    """Return the sizes of batches that are known without making one, ascending.

    Args:
        batches: to train with: a list of them, a DataLoader, or one of `raylab.data`.
        first: size of the first one.
    """
    sizes = {first}
    if isinstance(batches, (list, tuple)):
        sizes |= {_samples(each) for each in batches}
    else:
        size, count = _size_and_count(batches)
        if size and count is not None and count % size:
            sizes.add(count % size)
    return sorted(sizes - {0})


def check_one_value(run: Callable[[str], Any], sizes: Iterable[int], *, parts: int = 1) -> None:
    """Check that no batch normalisation meets a single sample.

    Args:
        run: trains one sample's forward on a device, "meta" or "cpu", on a copy.
        sizes: of the batches that are known.
        parts: micro-batches of a batch.

    Raises:
        ModelError: one does.
    """
    lonely = [size for size in sizes if _least_part(size, parts) == 1]
    if not lonely:
        return
    try:
        with torch.no_grad(), same_draws():
            on_shapes(run)
    except Exception as error:
        if not is_one_value(error):
            return
        cut = f" that micro_batches={parts} cuts into" if parts > 1 and lonely != [1] else ""
        raise ModelError(
            "batch normalisation trains with more than one value per channel, but batches of "
            f"{', '.join(map(str, lonely[:5]))} samples{cut} leave a part with a single one: "
            f"{WAY_OUT}"
        ) from error


def _least_part(size: int, parts: int) -> int:
    """Return the samples of the smallest part, as `Tensor.chunk` cuts."""
    each = -(-size // parts)
    return size % each or each


def _size_and_count(batches: Any) -> tuple[int | None, int | None]:
    if not isinstance(batches, DataLoader):
        return getattr(batches, "batch_size", None), getattr(batches, "num_samples", None)
    if batches.drop_last or batches.batch_size is None:
        return None, None
    with contextlib.suppress(TypeError, NotImplementedError):
        return batches.batch_size, len(batches.sampler)  # type: ignore[arg-type]
    return None, None


def _samples(pair: Any) -> int:
    first = next((t for t in pytree.tree_leaves(pair) if isinstance(t, Tensor)), None)
    return first.shape[0] if first is not None and first.ndim else 0
