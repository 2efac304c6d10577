"""LIBSVM text, read by scikit-learn once, and then mapped from an Arrow file beside it in a cache.

a9a.bz2 ── load_svmlight_file ── keyed order of rows ── <folder>/a9a.bz2-<key>.arrow ── map
           at the first use of path, size, time of writing            at every use
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import io
import itertools
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from raylab.data.arrow_rows import ArrowRows, map_rows, write_rows
from raylab.data.rows import (
    RowBlock,
    check_range,
    label_classes,
    label_coding,
    row_order,
    signed_labels,
)
from raylab.errors import DataError

__all__ = ["LibsvmRows", "libsvm_rows"]

_LAYOUT = 2  # of the Arrow file: raise it, and every file is made again
_OPENERS: dict[str, Any] = {".bz2": bz2.open, ".xz": lzma.open, ".gz": gzip.open}


@dataclass(frozen=True, slots=True, kw_only=True)
class LibsvmRows:
    """Rows of one file of LIBSVM text, sparse.

    They stand in a fixed, keyed order, the same for every seed, and not in the file's, which is
    often sorted: so contiguous shards are samples of the whole. `,shuffle=no` keeps the file's.
    """

    path: str  # of the text, absolute
    size_bytes: int
    modified_ns: int
    folder: str  # of the Arrow file, absolute
    columns: int | None = None  # None: the largest column of the file
    dtype: str = "float64"  # of the values
    shuffle: bool = True
    n: int = 0
    dim: int = 0
    classes: int = 0
    coding: tuple[float, float] | None = None  # of two classes, see `RowBlock`

    @property
    def name(self) -> str:
        """Return the spec."""
        rest = f",dim={self.dim}"
        rest += "" if self.dtype == "float64" else f",dtype={self.dtype}"
        return f"libsvm:{self.path}{rest}" + ("" if self.shuffle else ",shuffle=no")

    @property
    def arrow_path(self) -> Path:
        """Where the rows are kept: another file for every state of the text and way to read it."""
        key = f"{_LAYOUT} {self.path} {self.size_bytes} {self.modified_ns} "
        key += f"{self.columns} {self.dtype} {self.shuffle}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        return Path(self.folder, f"{Path(self.path).name}-{digest}.arrow")

    def mapped(self) -> ArrowRows:
        """Return the map of all rows, after reading the text where that has not been done here.

        Raises:
            DataError: the text is missing or malformed, or the folder cannot be written to.
        """
        if not self.arrow_path.exists():
            self._convert()
        return map_rows(self.arrow_path)

    def block(self, lo: int, hi: int) -> RowBlock:
        """Return rows lo..hi: views of the map.

        Raises:
            DataError: there are no such rows; or as `mapped`.
        """
        rows = self.mapped()
        check_range(lo, hi, len(rows.labels))
        return rows.block(lo, hi)

    def _convert(self) -> None:
        matrix, labels = _read(self.path, self.columns)
        if self.shuffle:
            order = row_order(len(labels))
            matrix, labels = matrix[order], labels[order]
        block = RowBlock(
            indptr=matrix.indptr.astype(np.int64, copy=False),
            indices=matrix.indices.astype(np.int32, copy=False),
            values=matrix.data.astype(self.dtype, copy=False),
            labels=signed_labels(labels),
            dim=matrix.shape[1],
            coding=label_coding(labels),
        )
        write_rows(self.arrow_path, block, classes=label_classes(labels))


def libsvm_rows(
    path: Path, folder: Path, *, columns: int | None, dtype: str, shuffle: bool
) -> LibsvmRows:
    """Describe the rows of a file, after making the Arrow file where there is none yet.

    Raises:
        DataError: as `LibsvmRows.mapped`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"`libsvm:PATH` must name a file, but {path} is none: {error}") from error
    described: dict[str, Any] = {
        "path": str(path),
        "size_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "folder": str(folder),
        "columns": columns,
        "dtype": dtype,
        "shuffle": shuffle,
    }
    rows = LibsvmRows(**described).mapped()
    found: dict[str, Any] = {"dim": rows.dim, "classes": rows.classes, "coding": rows.coding}
    return LibsvmRows(**described, n=len(rows.labels), **found)


def _open(path: str) -> IO[bytes]:
    opener = _OPENERS.get(Path(path).suffix, open)
    return opener(path, "rb")  # type: ignore[no-any-return]  # all four give bytes


def _read(path: str, columns: int | None) -> tuple[Any, Any]:
    """Return scipy's CSR matrix of a file, and its labels, float64."""
    load = importlib.import_module("sklearn.datasets").load_svmlight_file
    try:
        with _open(path) as file:
            matrix, labels = load(file, n_features=columns)
    except (ValueError, OverflowError) as error:  # of a line; the reader does not say which
        raise DataError(
            f"{path} must be LIBSVM text, `label column:value column:value …` with columns "
            f"ascending{'' if columns is None else f' and at most {columns}'}, but the reader "
            f"says{_place(path, load)}: {error}"
        ) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(
            f"{path} must be a whole file, compressed as its name says (.bz2, .xz, .gz), but it "
            f"could not be read: {error!r}; fetch it again"
        ) from error
    if matrix.shape[0] == 0:
        raise DataError(f"{path} must hold at least one row, but it is empty")
    if not (np.isfinite(labels).all() and np.isfinite(matrix.data).all()):
        finite = np.isfinite(labels)
        row_of_value = np.repeat(np.arange(len(labels)), np.diff(matrix.indptr))
        finite[row_of_value[~np.isfinite(matrix.data)]] = False
        raise DataError(
            f"labels and values must be finite, but row {int(np.argmin(finite)) + 1} of {path} "
            "has one that is not; leave such values out, or the row"
        )
    return matrix, labels


def _place(path: str, load: Any) -> str:
    """Return " of line N" for the first line that the reader does not take by itself, or ""."""
    number = 0
    with _open(path) as file:
        while lines := list(itertools.islice(file, 1000)):
            if not _reads(b"".join(lines), load):
                for line in lines:
                    number += 1
                    if not _reads(line, load):
                        return f" of line {number}, {line[:60].decode(errors='replace').strip()!r}"
            else:
                number += len(lines)
    return ""


def _reads(text: bytes, load: Any) -> bool:
    try:
        load(io.BytesIO(text))
    except (ValueError, OverflowError):
        return False
    return True
