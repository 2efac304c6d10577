"""Rows of data with a number each: what a worker of the parameter server computes on.

open_rows(spec) -> RowSource ── block(lo, hi) -> RowBlock
row_specs.py       a few hundred bytes,           arrays in memory or of a mapped file
                   sent to every worker
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raylab.data.augment import Stream, keyed_generator
from raylab.errors import DataError

__all__ = [
    "RowBlock",
    "RowSource",
    "block_generator",
    "check_range",
    "label_classes",
    "label_coding",
    "row_order",
    "signed_labels",
]

_MOST_CLASSES = 1000  # more different whole numbers than these are a quantity, not classes


_DTYPES: dict[str, tuple[np.dtype[Any], ...]] = {
    "indptr": (np.dtype(np.int64),),
    "indices": (np.dtype(np.int32),),
    "values": (np.dtype(np.float64), np.dtype(np.float32)),
    "labels": (np.dtype(np.float64),),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowBlock:
    """Some rows, sparse (CSR) or dense, and their labels. Nobody writes to the arrays.

    Row i has values[indptr[i]:indptr[i + 1]], at the columns indices[indptr[i]:indptr[i + 1]], or,
    where `indices` is None, at columns 0 to dim - 1. A column stands in a row at most once.

    Args:
        indptr: shape=(rows + 1,), int64, from 0.
        indices: shape=(values,), int32; None: the rows are dense.
        values: shape=(values,), float64 or float32.
        labels: shape=(rows,), float64; ±1 where there are two classes.
        dim: columns.
        coding: the numbers that the data has in the place of -1 and 1; None: `labels` are its own.

    Other numbers, byte orders and strides are copied to these.

    Raises:
        DataError: an array is not of numbers.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32] | None
    values: NDArray[np.floating[Any]]
    labels: NDArray[np.float64]
    dim: int
    coding: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        # Mapped files cannot be written to; no other array may either, so that kernels are
        # compiled for one kind of array only.
        for name, dtypes in _DTYPES.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.dtype not in dtypes or not array.flags.c_contiguous:
                array = _native(name, array, dtypes)
                object.__setattr__(self, name, array)
            array.flags.writeable = False

    @property
    def rows(self) -> int:
        """How many they are."""
        return len(self.labels)

    @property
    def targets(self) -> NDArray[np.float64]:
        """The labels as they stand in the data: what a regression is of."""
        if self.coding is None:
            return self.labels
        targets = np.where(self.labels > 0.0, self.coding[1], self.coding[0])
        targets.flags.writeable = False
        return targets

    @property
    def dense(self) -> bool:
        """Whether every column of every row has a value."""
        return self.indices is None

    def matrix(self) -> NDArray[np.floating[Any]]:
        """Return dense rows as an array of shape (rows, dim), without copying."""
        if self.indices is not None:
            raise DataError(
                f"these rows must be dense, but they are sparse, with {len(self.values)} values in "
                f"{self.rows} rows of {self.dim} columns; give data such as digits, npz:PATH or pca"
            )
        return self.values.reshape(self.rows, self.dim)

    @staticmethod
    def of_matrix(
        matrix: NDArray[np.floating[Any]],
        labels: NDArray[Any],
        coding: tuple[float, float] | None = None,
    ) -> RowBlock:
        """Make a block of dense rows: shape=(rows, dim), float64 or float32."""
        rows, dim = matrix.shape
        return RowBlock(
            indptr=np.arange(rows + 1, dtype=np.int64) * dim,
            indices=None,
            values=np.ascontiguousarray(matrix).reshape(-1).view(),
            labels=np.array(labels, dtype=np.float64),
            dim=dim,
            coding=coding,
        )


def _native(name: str, array: NDArray[Any], dtypes: Sequence[np.dtype[Any]]) -> NDArray[Any]:
    """Return an array as kernels take it: of float, a short one as the last of `dtypes`."""
    if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and dtypes[0].kind == "i"):
        raise DataError(
            f"{name} of rows must be numbers, {' or '.join(map(str, dtypes))}, but got "
            f"{array.dtype}: convert the array, for instance by .astype('{dtypes[0]}')"
        )
    short = array.dtype.kind == "f" and array.dtype.itemsize <= dtypes[-1].itemsize
    return np.array(array, dtype=dtypes[-1] if short else dtypes[0], order="C")


class RowSource(Protocol):
    """A description of rows that any process can turn into arrays; hashable, small, picklable."""

    @property
    def name(self) -> str:
        """The spec, with nothing left to a default."""
        ...

    @property
    def n(self) -> int:
        """Rows."""
        ...

    @property
    def dim(self) -> int:
        """Columns."""
        ...

    @property
    def classes(self) -> int:
        """Different labels, where they are whole numbers: -1 and 1 where there are two of any
        coding. 0: labels are quantities, or there are none and all are 0.
        """
        ...

    def block(self, lo: int, hi: int) -> RowBlock:
        """Return rows lo..hi (hi excluded).

        Raises:
            DataError: there are no such rows, or what they are read from is gone or malformed.
        """
        ...


def check_range(lo: int, hi: int, n: int) -> None:
    """Check that lo..hi are rows of n.

    Raises:
        DataError: they are not.
    """
    if not 0 <= lo < hi <= n:
        raise DataError(f"`0 <= lo < hi <= n` must hold, but got (lo={lo}, hi={hi}, n={n})")


@lru_cache(maxsize=4)
def row_order(n: int) -> NDArray[np.int64]:
    """Return the order in which n rows of a file are kept: a permutation that is always the same.

    Files are often sorted by label, or by where the data was collected; in this order, contiguous
    shards are samples of the whole. Raw draws, because numpy keeps those, and not a Generator's,
    the same in all its versions.
    """
    keys = np.random.PCG64(np.random.SeedSequence(0)).random_raw(n)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def label_classes(labels: NDArray[np.float64]) -> int:
    """Return how many classes the labels are of; 0: they are quantities.

    Two different values are two classes, whatever they are; more are classes where they are whole
    numbers and at most a thousand.
    """
    different = np.unique(labels)
    if len(different) <= 2:
        return len(different)
    whole = np.array_equal(different, np.rint(different))
    return len(different) if whole and len(different) <= _MOST_CLASSES else 0


def signed_labels(labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the labels of two classes as -1 (the smaller one) and 1; others as they are."""
    different = np.unique(labels)
    return np.where(labels == different[1], 1.0, -1.0) if len(different) == 2 else labels


def label_coding(labels: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the two numbers that `signed_labels` puts -1 and 1 in the place of; None: it changes
    nothing.
    """
    different = np.unique(labels)
    if len(different) != 2 or (different[0] == -1.0 and different[1] == 1.0):
        return None
    return float(different[0]), float(different[1])


def block_generator(seed: int, part: int, block: int) -> np.random.Generator:
    """Return the generator of one block of generated rows, whoever makes it."""
    return keyed_generator(Stream.SAMPLES, seed, part, block)
