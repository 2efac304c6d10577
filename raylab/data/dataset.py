"""From a spec, as it stands on a command line, to a data set."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raylab.data.batches import Batches
from raylab.data.held_out import HeldOut
from raylab.data.npz import NpzFile
from raylab.data.sources import (
    Digits,
    RandomNormal,
    Source,
    TorchvisionSet,
    arrays_of,
)
from raylab.errors import ConfigError

__all__ = ["DataSet", "load"]

_FORMS = {
    "digits": "digits",
    "mnist": "mnist",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "npz": "npz:PATH",
    "random": "random:n=1000,shape=3x32x32,classes=10,seed=0",
}
_DEFAULT_ROOT = "~/.cache/raylab/data"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Both splits of a data set and what a model must know of them."""

    name: str  # the spec, with nothing left to a default
    train: Batches
    test: Batches
    num_classes: int
    input_shape: tuple[int, int, int]  # (C, H, W)


def load(
    spec: str,
    *,
    batch_size: int,
    eval_batch_size: int | None = None,
    seed: int = 0,
    augment: bool = False,
    image_size: int | None = None,
    validation: float = 0.0,
    root: str | None = None,
    download: bool = False,
    dtype: torch.dtype = torch.float32,
) -> DataSet:
    """Read a data set, check it, and return its batches.

    >>> digits = load("digits", batch_size=32, image_size=16)
    >>> digits.input_shape, digits.num_classes, len(digits.train), len(digits.test)
    ((1, 16, 16), 10, 45, 12)

    Args:
        spec: `digits`; `mnist`, `cifar10` or `cifar100`, read from `root`; `npz:PATH`, a file with
            uint8 images x_train, x_test and integer labels y_train, y_test; or
            `random:n=1000,shape=3x32x32,classes=10,seed=0`, any part of which may be left out.
        batch_size: Samples per training batch.
        eval_batch_size: Samples per test batch; None is `batch_size`.
        seed: Keys the order and the augmentation of the training split, in [0, 2**32). It does not
            touch the split of `digits` nor the samples of `random`.
        augment: Crop and mirror the training images at random (`augment.random_crop_and_flip`);
            digits, MNIST and grey .npz images are cropped only.
        image_size: Height and width to resize images to, pixels; None keeps their size.
        validation: Share of the training samples, in [0, 1), that takes the place of the test
            samples, which are then left alone: for choices, whose makers must not see those.
        root: Folder of the torchvision sets; None is ~/.cache/raylab/data.
        download: Fetch a torchvision set that is not in `root`.
        dtype: Of x: float16, bfloat16, float32 or float64.

    Raises:
        ConfigError: the spec is unknown or malformed, or an argument is out of its range.
        DataError: the data is missing or malformed.
    """
    if eval_batch_size is None:
        eval_batch_size = batch_size
    _check_integer("batch_size", batch_size, low=1)
    _check_integer("eval_batch_size", eval_batch_size, low=1)
    _check_integer("seed", seed, low=0)
    if image_size is not None:
        _check_integer("image_size", image_size, low=1)
    if dtype not in _DTYPES:
        known = ", ".join(map(str, _DTYPES))
        raise ConfigError(f"`dtype` must be one of {known}, but got {dtype}")

    if not 0 <= validation < 1:
        raise ConfigError(f"`0 <= validation < 1` must hold, but got {validation!r}")

    source = _parse(spec, image_size=image_size, root=root, download=download)
    if validation:
        source = HeldOut(source=source, share=validation)
    arrays = arrays_of(source)
    train = Batches(
        source=source,
        split="train",
        batch_size=batch_size,
        num_samples=len(arrays.train.labels),
        seed=seed,
        augment=augment,
        dtype=dtype,
    )
    test = replace(
        train,
        split="test",
        batch_size=eval_batch_size,
        num_samples=len(arrays.test.labels),
        augment=False,
    )
    channels, height, width = arrays.train.images.shape[1:]
    return DataSet(
        name=source.name,
        train=train,
        test=test,
        num_classes=arrays.num_classes,
        input_shape=(channels, height, width),
    )


def _parse(spec: str, *, image_size: int | None, root: str | None, download: bool) -> Source:
    kind, colon, rest = spec.partition(":")
    if kind == "npz":
        return _npz(rest, image_size)
    if kind == "random":
        return _random(spec, rest, image_size)
    if kind not in _FORMS:
        close = difflib.get_close_matches(kind.lower(), _FORMS, n=1)
        hint = f"; did you mean {_FORMS[close[0]]}?" if close else ""
        forms = ", ".join(_FORMS.values())
        raise ConfigError(f"`data` must be one of {forms}, but got {spec!r}{hint}")
    if colon:
        raise ConfigError(f"`data={kind}` takes nothing after its name, but got {spec!r}")
    if kind == "digits":
        return Digits(image_size=image_size)
    folder = Path(root if root is not None else _DEFAULT_ROOT).expanduser().resolve()
    return TorchvisionSet(
        name=kind,  # type: ignore[arg-type]  # the kinds that are left are its three
        root=str(folder),
        download=download,
        image_size=image_size,
    )


def _npz(rest: str, image_size: int | None) -> NpzFile:
    if not rest:
        raise ConfigError("`npz:PATH` must name a file, but the path is empty")
    # Absolute, because a worker may run in another folder.
    path = Path(rest).expanduser().resolve()
    modified_ns = path.stat().st_mtime_ns if path.exists() else 0
    return NpzFile(path=str(path), modified_ns=modified_ns, image_size=image_size)


def _random(spec: str, rest: str, image_size: int | None) -> RandomNormal:
    rule = f"`{_FORMS['random']}` is the form"
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in ("n", "shape", "classes", "seed"):
            raise ConfigError(f"{rule}, but {spec!r} has the unknown part {part!r}")
        if key in options:
            raise ConfigError(f"{rule}, but {spec!r} gives {key} twice")
        pattern = r"\d+x\d+x\d+" if key == "shape" else r"\d+"
        if not re.fullmatch(pattern, value, re.ASCII):
            expected = "CxHxW" if key == "shape" else "a whole number"
            raise ConfigError(f"{rule}, with {key}={expected}, but {spec!r} has {part!r}")
        numbers = tuple(int(number) for number in value.split("x"))
        for number in numbers:
            _check_integer(f"{key} of {spec}", number, low=0 if key == "seed" else 1)
        options[key] = numbers if key == "shape" else numbers[0]
    source = RandomNormal(**options)
    if image_size is not None and source.shape[1:] != (image_size, image_size):
        raise ConfigError(
            f"random images are drawn in their size, but got image_size={image_size} with "
            f"{spec!r}; write shape={source.shape[0]}x{image_size}x{image_size}"
        )
    return source


def _check_integer(name: str, value: object, *, low: int) -> None:
    # bool is an int in Python, but batch_size=True is a mistake
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**32:
        raise ConfigError(f"`{name}` must be a whole number in [{low}, 2**32), but got {value!r}")
