"""Random numbers keyed by (seed, epoch, batch), and the augmentation that they drive."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Stream", "crop_and_flip", "keyed_generator", "random_crop_and_flip"]


class Stream(IntEnum):
    """What a key is used for, so that two uses of one key draw different numbers."""

    SHUFFLE = 0
    AUGMENT = 1
    SAMPLES = 2


def keyed_generator(
    stream: Stream, seed: int, epoch: int = 0, batch: int = 0
) -> np.random.Generator:
    """Return the generator that belongs to a key, the same in every process and order.

    It is `default_rng(SeedSequence([seed, epoch, batch], spawn_key=(stream,)))`. The stream is a
    spawn key because trailing zeros do not count in the entropy of a SeedSequence: without it the
    permutation of an epoch and the augmentation of its first batch would draw the same numbers.
    Another version of numpy may turn the same key into other numbers, so all processes of a run
    need the same one.

    Args:
        stream: What the numbers are for.
        seed: In [0, 2**32), so that it fills one word and cannot run into the epoch.
        epoch: In [0, 2**32).
        batch: Index of the batch in its epoch, in [0, 2**32).
    """
    key = np.random.SeedSequence([seed, epoch, batch], spawn_key=(int(stream),))
    return np.random.default_rng(key)


def random_crop_and_flip(images: Tensor, generator: np.random.Generator, *, flip: bool) -> Tensor:
    """Shift each image at random, and mirror it with probability 1/2 if `flip`.

    Pads by size // 8 pixels of zero on every side (4 for 32, at least 1), crops the old size at a
    place uniform over the (2·padding + 1)² possible ones, then mirrors left to right.

    Differs from the paper: zero is a black pixel of raw data, not the mean, as in most later code.

    Args:
        images: shape=(N, C, H, W), raw, any dtype.
        generator: Source of all the draws; it advances by the same number of draws whether or not
            `flip` is set.
        flip: Whether mirroring is allowed.

    Returns:
        shape=(N, C, H, W), dtype of `images`.

    Reference:
        He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    padding = max(1, min(images.shape[2:]) // 8)
    shifts = generator.integers(0, 2 * padding + 1, size=(2, len(images)))
    mirrored = generator.random(len(images)) < 0.5
    return crop_and_flip(
        images,
        padding,
        top=torch.from_numpy(shifts[0]),
        left=torch.from_numpy(shifts[1]),
        mirrored=torch.from_numpy(mirrored & flip),
    )


def crop_and_flip(
    images: Tensor, padding: int, *, top: Tensor, left: Tensor, mirrored: Tensor
) -> Tensor:
    """Cut one window out of each zero-padded image, and mirror those that are marked.

    out[n, c, i, j] = padded[n, c, top[n] + i, left[n] + j], with W - 1 - j for j where mirrored.

    Args:
        images: shape=(N, C, H, W).
        padding: Zeros added on every side, pixels.
        top: First row of each window, shape=(N,), int64 in [0, 2·padding].
        left: First column of each window, shape=(N,), int64 in [0, 2·padding].
        mirrored: Whether to mirror left to right, shape=(N,), bool.

    Returns:
        shape=(N, C, H, W), dtype of `images`.
    """
    n, c, h, w = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = top[:, None] + torch.arange(h)  # (N, H)
    columns = torch.arange(w).expand(n, w)
    columns = torch.where(mirrored[:, None], w - 1 - columns, columns) + left[:, None]  # (N, W)
    # One gather on flat pixels does crop and flip together; indexing with four index tensors does
    # the same and takes about five times as long.
    flat = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (N, H, W)
    flat = flat.reshape(n, 1, h * w).expand(n, c, h * w)
    return padded.flatten(2).gather(2, flat).reshape(n, c, h, w)
