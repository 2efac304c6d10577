"""Training images as dense rows: flattened, from 0 to 1, with their classes as labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylab.data.rows import (
    RowBlock,
    check_range,
    label_classes,
    label_coding,
    row_order,
    signed_labels,
)
from raylab.data.sources import Source, arrays_of

__all__ = ["ImageRows", "image_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRows:
    """The training split of an image data set, in a fixed, keyed order; float32."""

    source: Source
    n: int
    dim: int
    classes: int
    coding: tuple[float, float] | None = None  # of two classes, see `RowBlock`

    @property
    def name(self) -> str:
        """Return the spec."""
        return self.source.name

    def block(self, lo: int, hi: int) -> RowBlock:
        """Return rows lo..hi.

        Raises:
            DataError: there are no such rows, or the images cannot be read.
        """
        check_range(lo, hi, self.n)
        train = arrays_of(self.source).train
        order = row_order(self.n)[lo:hi]
        matrix = train.images.numpy()[order].reshape(hi - lo, -1).astype(np.float32)
        if train.images.numpy().dtype == np.uint8:
            matrix /= 255.0
        # Of all labels: which two classes there are is not seen in every shard.
        labels = signed_labels(train.labels.numpy().astype(np.float64))
        return RowBlock.of_matrix(matrix, labels[order], self.coding)


def image_rows(source: Source) -> ImageRows:
    """Describe the training images of a source.

    Raises:
        DataError: they cannot be read.
    """
    train = arrays_of(source).train
    labels = train.labels.numpy().astype(np.float64)
    return ImageRows(
        source=source,
        n=len(train.labels),
        dim=train.images[0].numel(),
        classes=label_classes(labels),
        coding=label_coding(labels),
    )
