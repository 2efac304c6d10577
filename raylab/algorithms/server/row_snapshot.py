"""Rows as they were at one moment, while they go on changing: what is copied is what changes.

    worker     preserve(rows), then writes to them     save() ──▶ RowSnapshot
    writer                                             blocks(): front to back, once

A row that changes before its block is written is copied first; the copies of a block go with it.
Where they become many, the worker waits until the writer has come further. So a checkpoint of duals
that fill half the memory costs some megabytes.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylab.problems.objective import Rows, Vector
from raylab.records import LateArray

__all__ = ["RowSnapshot", "SpilledRows"]

_BLOCK_BYTES = 1 << 23
_MOST_PRESERVED_BYTES = 1 << 26


class RowSnapshot(LateArray):
    """The rows of an array as they are now.

    Args:
        values: (rows,) or (rows, width), contiguous; whoever changes it later calls `preserve`
            first. It is kept alive, not copied.
        block_bytes: of a block.
        most_bytes: of preserved rows, beyond which `preserve` waits for a writer that has begun.
    """

    def __init__(
        self,
        values: Vector,
        *,
        block_bytes: int = _BLOCK_BYTES,
        most_bytes: int = _MOST_PRESERVED_BYTES,
    ) -> None:
        self.copied_bytes = 0
        """Of all rows that were preserved."""
        self.most_copied_bytes = 0
        """Of those that were in memory at once."""
        self._values = values
        self._row_bytes = max(1, values.nbytes // max(1, len(values)))
        self._block = max(1, block_bytes // self._row_bytes)
        self._most = most_bytes
        self._preserved: dict[int, list[tuple[Rows, Vector]]] = {}
        """Rows and what they were, by number of their block."""
        self._is_preserved = np.zeros(len(values), dtype=np.bool_)
        self._held_bytes = 0
        self._written = 0
        """Rows that need not be preserved any more."""
        self._writing = False
        self._moved = threading.Condition()

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self._values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's."""
        return self._values.dtype

    def preserve(self, rows: Rows) -> None:
        """Keep what rows are, as far as it is still to be written, before they change.

        Args:
            rows: distinct ones.
        """
        with self._moved:
            while self._writing and self._held_bytes >= self._most:
                self._moved.wait()
            rows = rows[(rows >= self._written) & ~self._is_preserved[rows]]
            if not len(rows):
                return
            rows = np.sort(rows)
            self._is_preserved[rows] = True
            values = self._values[rows]
            blocks, starts = np.unique(rows // self._block, return_index=True)
            for block, start, end in zip(blocks, starts, [*starts[1:], len(rows)], strict=True):
                # Copies, as a view would keep the others alive.
                part = (rows[start:end].copy(), values[start:end].copy())
                self._preserved.setdefault(int(block), []).append(part)
            self.copied_bytes += values.nbytes
            self._held_bytes += values.nbytes
            self.most_copied_bytes = max(self.most_copied_bytes, self._held_bytes)

    def blocks(self) -> Generator[NDArray[Any], None, None]:
        """Yield the rows as they were, once.

        Raises:
            RuntimeError: they have been read.
        """
        with self._moved:
            self._unread()
            self._writing = True
        try:
            buffer = np.empty_like(self._values[: self._block])
            for number in range(-(-len(self._values) // self._block)):
                with self._moved:
                    part = self._fill(number, buffer)
                    gone = self._preserved.pop(number, [])
                    self._held_bytes -= sum(values.nbytes for _, values in gone)
                    self._written += len(part)
                    self._moved.notify_all()
                yield part
        finally:
            with self._moved:
                # Whether or not the writer came to the end: nobody is to wait for it.
                self._writing = False
                self._written = len(self._values)
                self._preserved.clear()
                self._held_bytes = 0
                self._moved.notify_all()

    def array(self) -> Vector:
        """Return a copy of all rows as they were; the snapshot stays to be read.

        Raises:
            RuntimeError: they have been read.
        """
        with self._moved:
            self._unread()
            found = np.empty_like(self._values)
            for number in range(-(-len(found) // self._block)):
                start = number * self._block
                self._fill(number, found[start : start + self._block])
            return found

    def _unread(self) -> None:
        if self._writing or self._written:
            raise RuntimeError("a snapshot of rows is read once")

    def _fill(self, number: int, buffer: Vector) -> Vector:
        start = number * self._block
        now = self._values[start : start + self._block]
        part = buffer[: len(now)]
        part[...] = now
        for rows, values in self._preserved.get(number, ()):
            part[rows - start] = values
        return part


class SpilledRows:
    """A copy of an array in a file without a name, in the folder for temporary files.

    Args:
        values: the array, contiguous.
    """

    def __init__(self, values: Vector) -> None:
        self._shape = values.shape
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # open for as long as the copy lives
        weakref.finalize(self, self._file.close)
        values.tofile(self._file)

    def read(self) -> Vector:
        """Return the array, another one each time."""
        self._file.seek(0)
        found: Vector = np.fromfile(self._file, dtype=np.float64).reshape(self._shape)
        return found
