"""Dense rows of numbers from one .npz file: features that something else has computed."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylab.data.npz import load_npz
from raylab.data.rows import (
    RowBlock,
    check_range,
    label_classes,
    label_coding,
    row_order,
    signed_labels,
)
from raylab.errors import DataError

__all__ = ["FeatureRows", "feature_rows", "holds_features"]


_MOST_EXACT = 2**53
"""Up to which float64 tells one whole number from the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRows:
    """x_train, float of shape (N, D), and y_train, numbers of shape (N,), in a fixed, keyed order.

    A process keeps the rows that it asks for, and reads the file for that.
    """

    path: str  # absolute
    modified_ns: int
    n: int
    dim: int
    classes: int
    coding: tuple[float, float] | None = None  # of two classes, see `RowBlock`

    @property
    def name(self) -> str:
        """Return the spec."""
        return f"npz:{self.path}"

    def block(self, lo: int, hi: int) -> RowBlock:
        """Return rows lo..hi.

        Raises:
            DataError: there are no such rows, or the file is gone, unfit or another one.
        """
        check_range(lo, hi, self.n)
        rows, labels = _read(self.path)
        if rows.shape != (self.n, self.dim):
            raise DataError(
                f"{self.path} must stay as it is while it is used, but x_train had the shape "
                f"{(self.n, self.dim)} and has {rows.shape}: give the new file another name"
            )
        order = row_order(self.n)[lo:hi]
        # Of all labels: which two classes there are is not seen in every shard.
        return RowBlock.of_matrix(rows[order], signed_labels(labels)[order], self.coding)


def holds_features(path: Path) -> bool:
    """Tell whether x_train of an .npz file is no image, by its header alone."""
    try:
        with zipfile.ZipFile(path) as file, file.open("x_train.npy") as member:
            version = np.lib.format.read_magic(member)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        # Whoever reads it for its images says what is wrong.
        return False
    return dtype.kind == "f" or len(shape) < 3


def feature_rows(path: Path) -> FeatureRows:
    """Describe the rows of an .npz file.

    Raises:
        DataError: the file is missing or no .npz, or an array is missing or unfit.
    """
    rows, labels = _read(str(path))
    return FeatureRows(
        path=str(path),
        modified_ns=path.stat().st_mtime_ns,
        n=len(rows),
        dim=rows.shape[1],
        classes=label_classes(labels),
        coding=label_coding(labels),
    )


def _read(path: str) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
    arrays = load_npz(path, ("x_train", "y_train"))
    rows, labels = arrays["x_train"], arrays["y_train"]
    if rows.dtype.kind != "f" or rows.ndim != 2 or not rows.size:
        raise DataError(
            "rows must be features, float of shape (N, D), or images, uint8 of shape (N, H, W), "
            f"(N, C, H, W) or (N, H, W, C), but x_train in {path} is {rows.dtype} of shape "
            f"{rows.shape}: save x.reshape(len(x), -1).astype('float32')"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iuf" or labels.shape != rows.shape[:1]:
        raise DataError(
            f"labels must be numbers, one for each of {len(rows)} rows, but y_train in {path} is "
            f"{labels.dtype} of shape {labels.shape}; of one-hot labels save their argmax"
        )
    if labels.dtype.kind in "iu" and max(int(labels.max()), -int(labels.min())) > _MOST_EXACT:
        raise DataError(
            "labels must be at most 2**53, as float64 confuses larger numbers, but y_train in "
            f"{path} is {labels.dtype} from {labels.min()} to {labels.max()}: save "
            "numpy.unique(y, return_inverse=True)[1], or y - y.mean()"
        )
    # The kernels compute on native float32 and float64 alone: float16 goes up, long double down.
    with np.errstate(over="ignore"):  # what is beyond float64 is told below, as not finite
        labels = labels.astype(np.float64)
        rows = rows.astype(np.float32 if rows.dtype.itemsize <= 4 else np.float64, copy=False)
    for name, finite in (
        ("x_train", np.isfinite(rows).all(axis=1)),
        ("y_train", np.isfinite(labels)),
    ):
        if not finite.all():
            raise DataError(
                f"rows must be finite, but {name} in {path} is not in row {int(finite.argmin())} "
                f"and {int(np.count_nonzero(~finite)) - 1} more: leave those out, or fill them in"
            )
    return rows, labels
