"""The arrays of a data set in memory, checked, resized and with their statistics.

Images stay uint8 until a batch is made: a quarter of the memory of float32, and a quarter of the
bytes to gather. The statistics are therefore in raw pixel units, 0 to 255.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from raylab.errors import DataError

__all__ = [
    "Array",
    "Arrays",
    "Split",
    "channels_first",
    "check_room",
    "drawn_evenly",
    "make_arrays",
    "split_of",
]

Array = npt.NDArray[Any]

_CHUNK = 1024  # images per interpolation: bounds the float copy that it needs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """The images and labels of one split."""

    images: Tensor  # shape=(N, C, H, W), dtype=uint8 or float32
    labels: Tensor  # shape=(N,), dtype=int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrays:
    """Both splits and what is needed to normalise and augment them."""

    train: Split
    test: Split
    mean: Tensor  # shape=(C, 1, 1), dtype=float32, in the units of the images
    std: Tensor  # shape=(C, 1, 1), dtype=float32, 1 for a constant channel
    num_classes: int
    flip: bool  # whether a mirrored image is still an image of its class

    def split(self, name: str) -> Split:
        """Return the split called "train" or "test"."""
        return self.train if name == "train" else self.test


def make_arrays(
    train: Split, test: Split, *, num_classes: int, flip: bool, image_size: int | None = None
) -> Arrays:
    """Check both splits, resize their images and compute the statistics of the training split.

    Args:
        train: Training images and labels.
        test: Test images and labels.
        num_classes: Labels must lie in [0, num_classes).
        flip: Whether augmentation may mirror an image.
        image_size: Height and width to resize to, bilinear (antialiased when it shrinks), pixels;
            None keeps the size. It is done here, once, and costs N·C·image_size² bytes of memory.

    Raises:
        DataError: a split is empty, its lengths differ, the shapes of the two splits differ, or a
            label is out of range.
    """
    for name, split in (("train", train), ("test", test)):
        _check(name, split, num_classes)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            "training and test images must have the same shape (C, H, W), "
            f"but got {tuple(train.images.shape[1:])} and {tuple(test.images.shape[1:])}"
        )
    if image_size is not None:
        train = Split(images=_resize(train.images, image_size), labels=train.labels)
        test = Split(images=_resize(test.images, image_size), labels=test.labels)
    mean, std = _channel_statistics(train.images)
    return Arrays(train=train, test=test, mean=mean, std=std, num_classes=num_classes, flip=flip)


def split_of(images: Array, labels: Array) -> Split:
    """Make a split of numpy arrays: images (N, C, H, W), uint8 or float32, integer labels (N,)."""
    return Split(
        images=torch.from_numpy(np.ascontiguousarray(images)),
        labels=torch.from_numpy(labels.astype(np.int64)),
    )


def check_room(count: int, shape: Sequence[int], element_bytes: int) -> None:
    """Check that images can be held in this machine's memory, before they are made.

    Args:
        count: of the images.
        shape: of one.
        element_bytes: of a number.

    Raises:
        DataError: they cannot.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    need = count * math.prod(shape) * element_bytes
    if need > there:
        raise DataError(
            f"images must fit into memory, but {count} of {'x'.join(map(str, shape))} take "
            f"{need / 2**30:.3g} GiB and this machine has {there / 2**30:.3g}: take fewer or "
            "smaller ones"
        )


def drawn_evenly(labels: Array, count: int) -> npt.NDArray[np.bool_]:
    """Tell which samples are drawn: `count` of them, of every class its share, ±1.

    Args:
        labels: of the samples, shape (N,).
        count: how many to draw, in [0, N].
    """
    # A keyed order, then by class; of that line each N/count-th is drawn. Raw draws, because numpy
    # keeps those, and not a Generator's, the same in all its versions.
    keys = np.random.PCG64(np.random.SeedSequence(0)).random_raw(len(labels))
    order = np.argsort(keys, kind="stable")
    order = order[np.argsort(labels[order], kind="stable")]
    taken = np.arange(len(order) + 1) * count // len(order)
    drawn = np.zeros(len(order), dtype=bool)
    drawn[order] = np.diff(taken) > 0
    return drawn


def channels_first(images: Array) -> Array:
    """Return images as (N, C, H, W), given that or (N, H, W), or (N, H, W, C) with C 1 or 3.

    Where both orders of the axes would do, the first is meant.
    """
    if images.ndim == 3:
        return images[:, None]
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        return images.transpose(0, 3, 1, 2)
    return images


def _check(name: str, split: Split, num_classes: int) -> None:
    num_images, num_labels = len(split.images), len(split.labels)
    if num_images != num_labels:
        raise DataError(
            f"each image needs one label, but the {name} split has {num_images} images "
            f"and {num_labels} labels"
        )
    if split.images.numel() == 0:
        raise DataError(
            "a split must hold at least one image of at least one pixel, but the images of the "
            f"{name} split have shape {tuple(split.images.shape)}"
        )
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"labels must lie in [0, {num_classes}), but those of the {name} split "
            f"reach from {low} to {high}"
        )


def _resize(images: Tensor, size: int) -> Tensor:
    """Return uint8 images of shape (N, C, size, size)."""
    if images.shape[2:] == (size, size):
        return images
    check_room(len(images), (images.shape[1], size, size), images.element_size())
    resized = images.new_empty((*images.shape[:2], size, size))
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].to(torch.float32)
        chunk = F.interpolate(
            chunk, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
        resized[start : start + _CHUNK] = chunk.round_().clamp_(0, 255)
    return resized


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel, each of shape (C, 1, 1), float32."""
    means, variances = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].flatten()
        if pixels.dtype == torch.uint8:
            # A histogram gives the exact moments, without a float copy of the whole split.
            counts = torch.bincount(pixels, minlength=256).to(torch.float64) / len(pixels)
            values = torch.arange(256, dtype=torch.float64)
            mean = (counts * values).sum()
            variance = (counts * (values - mean).square()).sum()
        else:
            mean = pixels.mean(dtype=torch.float64)
            variance = (pixels - mean).square().mean(dtype=torch.float64)
        means.append(mean)
        variances.append(variance)
    std = torch.stack(variances).sqrt()
    std = torch.where(std > 0, std, torch.ones_like(std))  # a constant channel becomes zero
    mean = torch.stack(means)
    return mean.to(torch.float32)[:, None, None], std.to(torch.float32)[:, None, None]
