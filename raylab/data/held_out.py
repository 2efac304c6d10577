"""Training samples held out: what choices are made by, so that the test samples stay unseen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raylab.data.arrays import Arrays, Split, drawn_evenly, make_arrays
from raylab.data.sources import Source
from raylab.errors import DataError

__all__ = ["HeldOut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Another source, with a share of its training samples in the place of its test samples.

    The samples are the same in every run, whatever its seed, so that runs can be compared; every
    class is split alike, ±1 sample.
    """

    source: Source
    share: float  # of the training samples, in (0, 1)

    @property
    def name(self) -> str:
        """Return the spec of the whole."""
        return self.source.name

    def read(self) -> Arrays:
        """Read and split the training samples; the statistics are those of what remains.

        Raises:
            DataError: the source cannot be read, or a part would have no sample.
        """
        whole = self.source.read()
        labels = whole.train.labels
        count = round(self.share * len(labels))
        if not 0 < count < len(labels):
            raise DataError(
                f"validation must leave both parts some of the {len(labels)} training samples, but "
                f"{self.share:g} of them is {count}: take another share"
            )
        held = torch.from_numpy(drawn_evenly(labels.numpy(), count))
        return make_arrays(
            _part(whole.train, ~held),
            _part(whole.train, held),
            num_classes=whole.num_classes,
            flip=whole.flip,
        )


def _part(split: Split, chosen: torch.Tensor) -> Split:
    return Split(images=split.images[chosen], labels=split.labels[chosen])
