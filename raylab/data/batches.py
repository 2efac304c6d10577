"""Batches that iterate again, pickle light, and can be made one by one in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from raylab.data.arrays import Split
from raylab.data.augment import Stream, keyed_generator, random_crop_and_flip
from raylab.data.sources import Source, arrays_of
from raylab.errors import DataError

__all__ = ["Batches"]

_KEY_LIMIT = 2**32  # a key is one word of a SeedSequence


@dataclass(slots=True, kw_only=True)
class Batches:
    """The batches of one split: x normalised, y the class.

    Batch i of epoch e depends on (seed, e, i) and nothing else: not on the process, not on the
    batches made before it, not on any global generator. The training split is permuted by
    (seed, epoch) and augmented by (seed, epoch, i); the test split is in order and as it is.

    The arrays are no part of the object: the first batch reads them, once per process and source.

    >>> from raylab.data import load
    >>> train = load("digits", batch_size=100).train
    >>> len(train), train.num_samples
    (15, 1437)
    >>> x, y = train.batch(14)
    >>> x.shape, y.shape
    (torch.Size([37, 1, 8, 8]), torch.Size([37]))
    """

    source: Source  # describes the arrays
    split: Literal["train", "test"]
    batch_size: int  # samples per batch; the last one holds what remains
    num_samples: int  # samples in the split
    seed: int = 0  # keys the permutation and the augmentation
    augment: bool = False  # ignored for the test split
    dtype: torch.dtype = torch.float32  # of x
    epoch: int = 0  # keys the permutation and the augmentation; see set_epoch

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.from_batch(0)

    def from_batch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate from batch `index` on, without making those before it: where a run goes on."""
        epoch = self.epoch  # a set_epoch in the middle of a pass shall not mix two permutations
        for each in range(index, len(self)):
            yield self._make(each, epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation and the augmentation of the passes to come.

        Args:
            epoch: In [0, 2**32); the same epoch gives the same batches again.

        Raises:
            DataError: `epoch` is out of range.
        """
        if not 0 <= epoch < _KEY_LIMIT:
            raise DataError(f"`0 <= epoch < 2**32` must hold, but got epoch={epoch}")
        self.epoch = epoch

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Make one batch of the current epoch, equal to the one that iteration gives.

        Args:
            index: In [0, len(self)).

        Returns:
            x of shape (N, C, H, W) and `dtype`, zero mean and unit deviation per channel over the
            training split; y of shape (N,), int64. N is `batch_size`, or less in the last batch.
            Both are the caller's own.

        Raises:
            DataError: `index` is out of range; the source cannot be read here; or the split that
                it has here is of another length than where the object was made.
        """
        if not 0 <= index < len(self):
            raise DataError(f"`0 <= index < {len(self)}` must hold, but got index={index}")
        return self._make(index, self.epoch)

    def _make(self, index: int, epoch: int) -> tuple[Tensor, Tensor]:
        arrays = arrays_of(self.source)
        split = arrays.split(self.split)
        self._check_length(split)

        start = index * self.batch_size
        stop = min(start + self.batch_size, self.num_samples)
        if self.split == "train":
            chosen = _permutation(self.num_samples, self.seed, epoch)[start:stop]
        else:
            chosen = torch.arange(start, stop)
        x = split.images.index_select(0, chosen)
        y = split.labels.index_select(0, chosen)

        if self.augment and self.split == "train":
            generator = keyed_generator(Stream.AUGMENT, self.seed, epoch, index)
            x = random_crop_and_flip(x, generator, flip=arrays.flip)
        # index_select has copied, so that working in place cannot reach the cached arrays. Half
        # precision is rounded last: 255 minus a mean near it would lose most of its digits.
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        x = x.to(wide).sub_(arrays.mean).div_(arrays.std)
        return x.to(self.dtype), y

    def _check_length(self, split: Split) -> None:
        if len(split.labels) != self.num_samples:
            raise DataError(
                "every process must read the same data, but the "
                f"{self.split} split of {self.source.name} has {len(split.labels)} samples here "
                f"and had {self.num_samples} where it was loaded; copy the same file to all nodes"
            )


@lru_cache(maxsize=8)
def _permutation(num_samples: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the samples, shape=(num_samples,), int64; do not write to it."""
    generator = keyed_generator(Stream.SHUFFLE, seed, epoch)
    return torch.from_numpy(generator.permutation(num_samples))
