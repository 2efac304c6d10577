"""Data: a spec becomes keyed batches of images, or rows, that any process can make again.

    load(spec) -> DataSet ── train, test: Batches ── source: Source ── read() -> Arrays
    dataset.py               batches.py              sources.py        arrays.py

A `Batches` holds only the description of its source, so it pickles into a few hundred bytes; the
arrays are read where it is first iterated, once per process. Augmentation is in `augment.py`, and
what a search holds out to choose by in `held_out.py`.

The parameter server's workers take rows: `open_rows(spec) -> RowSource`, and of that their own
`block(lo, hi) -> RowBlock` (`rows.py`).
"""

from __future__ import annotations

from raylab.data.batches import Batches
from raylab.data.dataset import DataSet, load
from raylab.data.row_specs import open_rows
from raylab.data.rows import RowBlock, RowSource

__all__ = ["Batches", "DataSet", "RowBlock", "RowSource", "load", "open_rows"]
