"""Rows in one Arrow IPC file, written once, mapped by every process that computes on them.

The file has one record batch: `label` float64; `values` large_list of float64 or float32; and of
sparse rows `indices` large_list of int32. The offsets of a large_list are a CSR matrix's indptr, so
that the map is the matrix.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raylab.data.rows import RowBlock
from raylab.errors import DataError

__all__ = ["ArrowRows", "map_rows", "write_rows"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrowRows:
    """The arrays of a mapped file, and what its metadata says of them."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.floating[Any]]
    labels: NDArray[np.float64]
    dim: int
    classes: int
    coding: tuple[float, float] | None

    def block(self, lo: int, hi: int) -> RowBlock:
        """Return rows lo..hi: views of the map, but for indptr (8 bytes a row), which from 0."""
        start, end = int(self.indptr[lo]), int(self.indptr[hi])
        return RowBlock(
            indptr=self.indptr[lo : hi + 1] - start,
            indices=self.indices[start:end],
            values=self.values[start:end],
            labels=self.labels[lo:hi],
            dim=self.dim,
            coding=self.coding,
        )


def write_rows(path: Path, block: RowBlock, *, classes: int) -> None:
    """Write sparse rows beside `path` and rename the file when it is whole.

    Two processes that write the same file at once both succeed: the names they write under differ.

    Raises:
        DataError: the folder cannot be made or written to.
    """
    offsets = pa.array(block.indptr)
    columns = [
        pa.array(block.labels),
        pa.LargeListArray.from_arrays(offsets, pa.array(block.values)),
        pa.LargeListArray.from_arrays(offsets, pa.array(block.indices)),
    ]
    batch = pa.record_batch(columns, names=["label", "values", "indices"])
    about = {"dim": block.dim, "classes": classes, "coding": block.coding}
    batch = batch.replace_schema_metadata({key: json.dumps(each) for key, each in about.items()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=".", suffix=".arrow", dir=path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    os.close(descriptor)
    try:
        with pa.OSFile(aside, "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        Path(aside).replace(path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        Path(aside).unlink(missing_ok=True)


@lru_cache(maxsize=8)
def map_rows(path: Path) -> ArrowRows:
    """Map a file that `write_rows` has written, once per process.

    Raises:
        DataError: it is missing, or no such file.
    """
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        about = {key.decode(): json.loads(each) for key, each in batch.schema.metadata.items()}
        coding = about["coding"]
        values, indices = batch.column("values"), batch.column("indices")
        return ArrowRows(
            indptr=values.offsets.to_numpy(zero_copy_only=True),
            indices=indices.values.to_numpy(zero_copy_only=True),
            values=values.values.to_numpy(zero_copy_only=True),
            labels=batch.column("label").to_numpy(zero_copy_only=True),
            dim=about["dim"],
            classes=about["classes"],
            coding=None if coding is None else (coding[0], coding[1]),
        )
    except (
        OSError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        pa.ArrowException,
    ) as error:
        raise DataError(
            f"{path} must be rows that raylab has written, but Arrow cannot map it as such: "
            f"{error!r}; delete it, and it is made again"
        ) from error


def _not_written(path: Path, error: OSError) -> DataError:
    return DataError(
        f"rows are kept in {path.parent}, but {path.name} could not be written there: {error}; "
        "give another folder"
    )
