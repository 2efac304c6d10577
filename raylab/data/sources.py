"""Where arrays come from: frozen descriptions that pickle light and read on demand.

Source ── Digits          scikit-learn's embedded images
       ├─ TorchvisionSet  MNIST, CIFAR-10, CIFAR-100 in a folder
       ├─ NpzFile         any uint8 images in one .npz file
       └─ RandomNormal    noise, for benchmarks
"""

from __future__ import annotations

import importlib
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from raylab._torchvision import import_torchvision
from raylab.data.arrays import (
    Arrays,
    channels_first,
    check_room,
    drawn_evenly,
    make_arrays,
    split_of,
)
from raylab.data.augment import Stream, keyed_generator
from raylab.errors import DataError

__all__ = ["Digits", "RandomNormal", "Source", "TorchvisionSet", "arrays_of"]


class Source(Protocol):
    """A hashable description of arrays; equal descriptions are read once per process."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """The spec that describes the source, with nothing left to a default."""

    def read(self) -> Arrays:
        """Read the arrays; raise DataError if that is not possible."""


@lru_cache(maxsize=4)
def arrays_of(source: Source) -> Arrays:
    """Return the arrays of a source, read at the first call in this process.

    Raises:
        DataError: the source cannot be read.
    """
    return source.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """The 1,797 grey 8x8 digits of scikit-learn: 1,437 to train with and 360 to test."""

    image_size: int | None = None  # height and width, pixels; None is 8

    @property
    def name(self) -> str:
        """Return the spec."""
        return "digits"

    def read(self) -> Arrays:
        """Read and split the images, the same way always; every class is split alike, ±1 image."""
        datasets = importlib.import_module("sklearn.datasets")
        images, labels = datasets.load_digits(return_X_y=True)
        images = (images * 15).astype(np.uint8).reshape(-1, 1, 8, 8)  # from 0..16 to 0..240
        test = drawn_evenly(labels, 360)
        return make_arrays(
            split_of(images[~test], labels[~test]),
            split_of(images[test], labels[test]),
            num_classes=10,
            flip=False,
            image_size=self.image_size,
        )


# per data set: the class in torchvision.datasets, the folder that holds its files, its classes
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw", 10),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", 10),
    "cifar100": ("CIFAR100", "cifar-100-python", 100),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchvisionSet:
    """A data set that torchvision reads from a folder, and fetches only when asked."""

    name: Literal["mnist", "cifar10", "cifar100"]
    root: str  # absolute; holds the folder of the data set
    download: bool = False  # fetch what is missing
    image_size: int | None = None  # height and width, pixels; None is 28 or 32

    def read(self) -> Arrays:
        """Read the files, after fetching them if that is asked for.

        Raises:
            DataError: the folder is missing, incomplete or damaged, or the download failed.
        """
        class_name, folder, num_classes = _TORCHVISION[self.name]
        path = Path(self.root, folder)
        if not (self.download or path.is_dir()):
            raise DataError(
                f"the files of {self.name} must be in {path}, but there is no such folder; "
                "pass download=true to fetch them, or data_root=PATH for the folder above it"
            )
        import_torchvision()
        make_set = getattr(importlib.import_module("torchvision.datasets"), class_name)
        try:
            with ExitStack() as stack:
                # Old pickles, such as CIFAR's, make numpy 2.4.0 to 2.4.4 warn of their `align=0`.
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
                if self.download:  # several processes of a node may find the files missing
                    import fcntl  # not on every system, and needed nowhere else

                    Path(self.root).mkdir(parents=True, exist_ok=True)
                    lock = stack.enter_context(Path(self.root, f".{self.name}.lock").open("w"))
                    fcntl.flock(lock, fcntl.LOCK_EX)
                train, test = (
                    make_set(self.root, train=is_train, download=self.download)
                    for is_train in (True, False)
                )
        except Exception as error:  # torchvision checks with asserts too, and unpickles
            raise DataError(
                f"the files of {self.name} in {path} must be complete and readable, but "
                f"torchvision raised {error!r}; pass download=true to fetch them, or "
                "data_root=PATH for another folder"
            ) from error
        return make_arrays(
            split_of(channels_first(np.asarray(train.data)), np.asarray(train.targets)),
            split_of(channels_first(np.asarray(test.data)), np.asarray(test.targets)),
            num_classes=num_classes,
            flip=self.name != "mnist",
            image_size=self.image_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomNormal:
    """Standard normal images with random labels: nothing to learn, for benchmarks."""

    n: int = 1000  # training samples; the test split has n // 5, at least 1
    shape: tuple[int, int, int] = (3, 32, 32)  # (C, H, W)
    classes: int = 10
    seed: int = 0  # of the samples; the order of the batches has another

    @property
    def name(self) -> str:
        """Return the spec."""
        shape = "x".join(map(str, self.shape))
        return f"random:n={self.n},shape={shape},classes={self.classes},seed={self.seed}"

    def read(self) -> Arrays:
        """Draw both splits.

        Raises:
            DataError: they do not fit into memory.
        """
        check_room(self.n, self.shape, 4)
        splits = []
        for part, count in enumerate((self.n, max(1, self.n // 5))):
            generator = keyed_generator(Stream.SAMPLES, self.seed, part)
            images = generator.standard_normal((count, *self.shape), dtype=np.float32)
            splits.append(split_of(images, generator.integers(0, self.classes, size=count)))
        return make_arrays(*splits, num_classes=self.classes, flip=True)
