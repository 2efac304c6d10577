"""Arrays of a state that are written block by block, so that nothing need hold a copy of them.

NAME.zip    state.pt       the state without them, in torch's format
            arrays.json    where in the state they belong
            0.npy …        one each, in numpy's format, uncompressed
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "LateArray",
    "LateRows",
    "ReadLate",
    "load_archive",
    "save_archive",
    "taken_apart",
    "tensor_of",
]

Place = tuple[str, ...]
"""The keys that lead to an array, from the outermost dictionary on."""
_STATE, _PLACES = "state.pt", "arrays.json"
_DEEPEST = 4
_CHUNK = 1 << 20


class LateArray(ABC):
    """An array as it was at one moment, which is read once, from its first row to its last."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""

    @abstractmethod
    def blocks(self) -> Generator[NDArray[Any], None, None]:
        """Yield its rows, in contiguous blocks that are good until the next one is asked for."""


def taken_apart(state: Any) -> tuple[Any, dict[Place, LateArray]]:
    """Return a state without its late arrays, and these by their places.

    They may stand in dictionaries with texts for keys, up to four of them deep.
    """
    late: dict[Place, LateArray] = {}

    def walk(value: Any, place: Place) -> Any:
        if type(value) is not dict or len(place) >= _DEEPEST:
            return value
        left = {}
        for key, each in value.items():
            if isinstance(each, LateArray) and isinstance(key, str):
                late[(*place, key)] = each
            else:
                left[key] = walk(each, (*place, key)) if isinstance(key, str) else each
        return left

    return walk(state, ()), late


def save_archive(file: Any, plain: Mapping[str, Any], late: Mapping[Place, LateArray]) -> None:
    """Write what `taken_apart` has returned, front to back.

    Args:
        file: to write to; it needs no seek.
        plain: the state without late arrays.
        late: these, each of which is read.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(_STATE, "w") as member:
            torch.save(plain, member)
        archive.writestr(_PLACES, json.dumps([list(place) for place in late]))
        for number, array in enumerate(late.values()):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(array.dtype),
                    "fortran_order": False,
                    "shape": array.shape,
                }
                np.lib.format.write_array_header_1_0(member, header)
                # Closed however this ends, so that nobody waits for the rest to be read.
                with contextlib.closing(array.blocks()) as blocks:
                    for block in blocks:
                        member.write(block.data.cast("B"))


class LateRows:
    """A late array in an archive that is open.

    Args:
        file: of the array, in numpy's format.
    """

    def __init__(self, file: IO[bytes]) -> None:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("an array must be in version 1.0 of numpy's format")
        self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
        self._file = file
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))

    def read_into(self, out: NDArray[Any], first: int = 0) -> None:
        """Fill an array with rows, once.

        Args:
            out: contiguous, of the type and the width of the rows.
            first: of them.

        Raises:
            ValueError: there are fewer.
        """
        left = first * self._row_bytes
        while left and (skipped := self._file.read(min(left, _CHUNK))):
            left -= len(skipped)
        target = out.reshape(-1).view(np.uint8).data
        while left == 0 and len(target) and (chunk := self._file.read(min(len(target), _CHUNK))):
            target[: len(chunk)] = chunk
            target = target[len(chunk) :]
        if left or len(target):
            raise ValueError(f"there must be {first + len(out)} rows, but there are fewer")


def tensor_of(place: Place, late: LateRows) -> torch.Tensor:  # noqa: ARG001  # wherever it stood
    """Return all rows as a tensor that nobody else has."""
    array = np.empty(late.shape, late.dtype)
    late.read_into(array)
    return torch.from_numpy(array)


def load_archive(file: IO[bytes], read: ReadLate = tensor_of) -> Any:
    """Return the state of an archive.

    Args:
        file: of the archive, with seek.
        read: takes the place of a late array and its rows; returns what is to stand there.

    Raises:
        ValueError: it is no such archive.
        zipfile.BadZipFile: likewise.
    """
    with zipfile.ZipFile(file) as archive:
        with archive.open(_STATE) as member:
            state = torch.load(member, map_location="cpu", weights_only=True)
        places: Sequence[Sequence[str]] = json.loads(archive.read(_PLACES))
        for number, place in enumerate(places):
            inside = state
            for each in place[:-1]:
                inside = inside[each]
            with archive.open(f"{number}.npy") as member:
                inside[place[-1]] = read(tuple(place), LateRows(member))
    return state


ReadLate = Callable[[Place, LateRows], Any]
"""Makes what is to stand in the place of a late array."""
