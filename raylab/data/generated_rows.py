"""Rows that are drawn, block by block: any shard of them is made without the others.

A block of 4,096 rows is keyed by (seed, its number), so that the same rows come out however they
are divided over workers, and a worker that is replaced draws its own again. Nothing lies on a disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylab.data.rows import RowBlock, block_generator, check_range

__all__ = ["PcaRows", "SparseRows", "pca_rows"]

_BLOCK = 4096
_PARTS = {"pca": 0, "sparse": 1, "direction": 2}  # of the key: what is drawn


def _pieces(lo: int, hi: int, n: int) -> list[tuple[int, int, slice, slice]]:
    """Return (block, its rows, which of them, where they go) for every block of rows lo..hi."""
    pieces = []
    for block in range(lo // _BLOCK, (hi - 1) // _BLOCK + 1):
        first = block * _BLOCK
        rows = min(_BLOCK, n - first)
        start, end = max(lo, first), min(hi, first + rows)
        pieces.append((block, rows, slice(start - first, end - first), slice(start - lo, end - lo)))
    return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class PcaRows:
    """Normal vectors with their mean subtracted and the Euclidean norm 1, dense, float32.

    float32 because n = 500,000 rows of d = 500 then take 1 GB; arithmetic on them is in float64.

    Reference:
        HUO 2020, section 3.5.2: "random vectors […] mean subtracted and normalized".
    """

    n: int
    dim: int
    seed: int
    mean: tuple[float, ...]  # of all n vectors, before it is subtracted

    @property
    def name(self) -> str:
        """Return the spec."""
        return f"pca:n={self.n},d={self.dim},seed={self.seed}"

    @property
    def classes(self) -> int:
        """Return 0: the labels are all 0."""
        return 0

    def block(self, lo: int, hi: int) -> RowBlock:
        """Draw rows lo..hi.

        Raises:
            DataError: there are no such rows.
        """
        check_range(lo, hi, self.n)
        matrix = np.empty((hi - lo, self.dim), dtype=np.float32)
        mean = np.array(self.mean)
        for block, rows, taken, to in _pieces(lo, hi, self.n):
            centred = _normal(self.seed, block, rows, self.dim)[taken] - mean
            centred /= np.sqrt(np.einsum("ij,ij->i", centred, centred))[:, None]
            matrix[to] = centred
        return RowBlock.of_matrix(matrix, np.zeros(hi - lo))


def pca_rows(n: int, dim: int, seed: int) -> PcaRows:
    """Describe rows for principal components; draws all of them once, for their mean."""
    total = np.zeros(dim)
    for block, rows, _, _ in _pieces(0, n, n):
        total += _normal(seed, block, rows, dim).sum(axis=0, dtype=np.float64)
    return PcaRows(n=n, dim=dim, seed=seed, mean=tuple((total / n).tolist()))


def _normal(seed: int, block: int, rows: int, dim: int) -> NDArray[np.float32]:
    generator = block_generator(seed, _PARTS["pca"], block)
    return generator.standard_normal((rows, dim), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseRows:
    """Sparse unit rows as term vectors have them, with labels ±1 that a hyperplane nearly gives.

    A row has 0.5 to 1.5 times `density` · dim values, all positive, at columns of which the first
    ones are the more frequent (density of column c ~ 1/√c). The label is the sign of the row's
    product with a normal vector, plus noise of 0.3 times that product's standard deviation.
    """

    n: int
    dim: int
    density: float  # mean part of the columns that have a value
    seed: int
    dtype: str = "float64"  # of the values

    @property
    def name(self) -> str:
        """Return the spec."""
        spec = f"sparse:n={self.n},d={self.dim},density={self.density!r},seed={self.seed}"
        return spec if self.dtype == "float64" else f"{spec},dtype={self.dtype}"

    @property
    def classes(self) -> int:
        """Return 2."""
        return 2

    def block(self, lo: int, hi: int) -> RowBlock:
        """Draw rows lo..hi.

        Raises:
            DataError: there are no such rows.
        """
        check_range(lo, hi, self.n)
        # The counts first: they say how much memory the rows need, which is then filled in place.
        counts = np.empty(hi - lo, dtype=np.int64)
        pieces = _pieces(lo, hi, self.n)
        for block, rows, taken, to in pieces:
            counts[to] = self._counts(block, rows)[1][taken]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        indices = np.empty(indptr[-1], dtype=np.int32)
        values = np.empty(indptr[-1], dtype=self.dtype)
        labels = np.empty(hi - lo)
        direction = block_generator(self.seed, _PARTS["direction"], 0).standard_normal(self.dim)
        for block, rows, taken, to in pieces:
            drawn = self._draw(block, rows, direction)
            part = slice(int(indptr[to.start]), int(indptr[to.stop]))
            source = slice(int(drawn[0][taken.start]), int(drawn[0][taken.stop]))
            indices[part], values[part] = drawn[1][source], drawn[2][source]
            labels[to] = drawn[3][taken]
        return RowBlock(indptr=indptr, indices=indices, values=values, labels=labels, dim=self.dim)

    def _counts(self, block: int, rows: int) -> tuple[np.random.Generator, NDArray[np.int64]]:
        generator = block_generator(self.seed, _PARTS["sparse"], block)
        counts = np.rint(self.density * self.dim * (0.5 + generator.random(rows)))
        return generator, counts.clip(1, self.dim).astype(np.int64)

    def _draw(
        self, block: int, rows: int, direction: NDArray[np.float64]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return indptr, indices, values and labels of a whole block."""
        generator, counts = self._counts(block, rows)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        row = np.repeat(np.arange(rows), counts)
        # k numbers in [0, dim - k], sorted, become k different columns when 0, 1, … k - 1 is added.
        free = np.repeat(self.dim - counts + 1, counts)
        columns = (free * generator.random(len(row)) ** 2).astype(np.int64)
        columns = np.sort(row * self.dim + columns) % self.dim  # sorted within each row
        columns += np.arange(len(row)) - indptr[:-1].repeat(counts)
        values = generator.exponential(size=len(row))
        values /= np.sqrt(np.add.reduceat(values * values, indptr[:-1]))[row]
        product = np.add.reduceat(values * direction[columns], indptr[:-1])
        noise = 0.3 * generator.standard_normal(rows)  # the product's deviation is 1: a unit row's
        return indptr, columns, values, np.where(product + noise >= 0, 1.0, -1.0)
