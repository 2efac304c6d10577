"""Image classification data: a spec becomes keyed batches that any process can make again.

    load(spec) -> DataSet ── train, test: Batches ── source: Source ── read() -> Arrays
    dataset.py               batches.py              sources.py        arrays.py

A `Batches` holds only the description of its source, so it pickles into a few hundred bytes; the
arrays are read where it is first iterated, once per process. Augmentation is in `augment.py`.
"""

from __future__ import annotations

from raylab.data.batches import Batches
from raylab.data.dataset import DataSet, load

__all__ = ["Batches", "DataSet", "load"]
