"""Images and labels from one .npz file."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from raylab.data.arrays import Array, Arrays, channels_first, make_arrays, split_of
from raylab.errors import DataError

__all__ = ["NpzFile", "load_npz"]


_FEW_CLASSES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzFile:
    """One .npz file with x_train, y_train, x_test and y_test.

    Images are uint8 of shape (N, H, W), (N, C, H, W), or (N, H, W, C) with C 1 or 3; where both of
    the latter would do, the first is meant. Labels are integers of shape (N,) or (N, 1), and the
    number of classes is the largest label plus one. Augmentation mirrors colour images only, for
    grey ones are most often characters.
    """

    path: str  # absolute
    modified_ns: int = 0  # time of the last write: a file written anew is read anew
    image_size: int | None = None  # height and width, pixels; None keeps the file's

    @property
    def name(self) -> str:
        """Return the spec."""
        return f"npz:{self.path}"

    def read(self) -> Arrays:
        """Read and check the arrays.

        Raises:
            DataError: the file is missing or no .npz, or an array is missing or unfit.
        """
        arrays = load_npz(self.path, ("x_train", "y_train", "x_test", "y_test"))
        images, labels = {}, {}
        for part in ("train", "test"):
            images[part] = self._images(f"x_{part}", arrays[f"x_{part}"])
            labels[part] = self._labels(f"y_{part}", arrays[f"y_{part}"])
        # An empty array has no maximum; make_arrays names the split that is empty.
        num_classes = 1 + max(int(part.max(initial=0)) for part in labels.values())
        self._check_classes(num_classes, len(labels["train"]))
        try:
            return make_arrays(
                split_of(images["train"], labels["train"]),
                split_of(images["test"], labels["test"]),
                num_classes=num_classes,
                flip=images["train"].shape[1] == 3,
                image_size=self.image_size,
            )
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error

    def _check_classes(self, num_classes: int, samples: int) -> None:
        # The network has an output for each: a label that is an identifier would ask for millions.
        if num_classes > max(_FEW_CLASSES, 10 * samples):
            raise DataError(
                f"labels must be classes counted from 0, but the largest of {samples} labels in "
                f"{self.path} is {num_classes - 1}: save their ranks, "
                "numpy.unique(labels, return_inverse=True)[1]"
            )

    def _images(self, key: str, images: Array) -> Array:
        if images.dtype != np.uint8:
            raise DataError(
                f"images must be uint8, 0 to 255, but {key} in {self.path} is {images.dtype}; "
                "convert it before it is saved"
            )
        if images.ndim not in (3, 4):
            raise DataError(
                "images must have the shape (N, H, W), (N, C, H, W) or (N, H, W, C), but "
                f"{key} in {self.path} has {images.shape}"
            )
        return channels_first(images)

    def _labels(self, key: str, labels: Array) -> Array:
        if labels.dtype.kind not in "iu":
            raise DataError(
                f"labels must be integers, but {key} in {self.path} is {labels.dtype}; "
                "convert it before it is saved"
            )
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise DataError(
                f"labels must have the shape (N,), but {key} in {self.path} has {labels.shape}; "
                "one-hot labels are not read: save their argmax"
            )
        return labels


def _array(file: np.lib.npyio.NpzFile, key: str, path: str) -> Array:
    try:
        return file[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"{path} must be an .npz file of plain arrays, but numpy could not read it as one: "
            f"{key} has the dtype object, of pickled Python objects; save numbers, "
            "x.astype('float32')"
        ) from error


def load_npz(path: str, keys: tuple[str, ...]) -> dict[str, Array]:
    """Return arrays of an .npz file.

    Raises:
        DataError: the file is missing or no .npz, or an array is missing.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} must be an .npz file, but it holds a single array")
        with file:
            missing = [key for key in keys if key not in file]
            if missing:
                raise DataError(
                    f"{path} must hold the arrays {', '.join(keys)}, but "
                    f"{', '.join(missing)} is missing; it has {', '.join(file) or 'none'}"
                )
            return {key: _array(file, key, path) for key in keys}
    except FileNotFoundError as error:
        raise DataError(
            f"`npz:PATH` must name a file, but there is none at {path}; write one with "
            f"numpy.savez(PATH, {', '.join(f'{key}=...' for key in keys)})"
        ) from error
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # ValueError: an array of Python objects, or not numpy's format at all
        raise DataError(
            f"{path} must be an .npz file of plain arrays, but numpy could not read it "
            f"as one: {error}; write it with numpy.savez"
        ) from error
