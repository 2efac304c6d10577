"""From a spec, as it stands on a command line, to rows of data."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylab.data.feature_rows import feature_rows, holds_features
from raylab.data.generated_rows import SparseRows, pca_rows
from raylab.data.image_rows import image_rows
from raylab.data.libsvm import libsvm_rows
from raylab.data.npz import NpzFile
from raylab.data.rows import RowSource
from raylab.data.sources import Digits
from raylab.errors import ConfigError

__all__ = ["open_rows"]

_FORMS = {
    "libsvm": "libsvm:PATH[,dim=D][,dtype=float32][,shuffle=no]",
    "digits": "digits",
    "npz": "npz:PATH",
    "pca": "pca:n=N,d=D[,seed=S]",
    "sparse": "sparse:n=N,d=D,density=P[,seed=S][,dtype=float32]",
}
_MOST_BYTES = 1 << 40
_FOLDER = "~/.cache/raylab/rows"


def open_rows(spec: str, *, folder: Path | None = None, seed: int = 0) -> RowSource:
    """Return a description of rows, made or read here as far as that says what they are.

    >>> rows = open_rows("sparse:n=1000,d=500,density=0.01")
    >>> rows.n, rows.dim, rows.classes
    (1000, 500, 2)
    >>> block = rows.block(250, 500)
    >>> block.rows, block.dense
    (250, False)

    Args:
        spec: one of
            `libsvm:PATH`: LIBSVM text, plain or compressed (.bz2, .xz, .gz); `dim` where the last
            columns of the file are empty. Read once, kept as an Arrow file, and mapped from then
            on. The rows stand in a fixed, keyed order, so that shards are alike; `shuffle=no` keeps
            that of the file.
            `digits`, `npz:PATH`: training images, flattened, from 0 to 1, for `softmax_mlp`; in a
            fixed, keyed order too. Of an .npz file whose x_train is float of shape (N, D), these
            rows as they are, and y_train may be any numbers.
            `pca:n=N,d=D`: normal vectors, centred, of norm 1 (HUO 3.5.2).
            `sparse:n=N,d=D,density=P`: sparse unit rows, labels ±1; RCV1's shape is
            n=677399,d=47236,density=0.0016.
        folder: of the Arrow files; None is ~/.cache/raylab/rows. A file of it may be deleted at any
            time: it is made again.
        seed: of what is drawn, where the spec does not say it, in [0, 2**32). It does not touch the
            order of rows.

    Raises:
        ConfigError: the spec is unknown or malformed.
        DataError: a file is missing or malformed, or cannot be kept.
    """
    kind, colon, rest = spec.partition(":")
    if kind not in _FORMS:
        close = difflib.get_close_matches(kind.lower(), _FORMS, n=1)
        hint = f"; did you mean {_FORMS[close[0]]}?" if close else ""
        forms = ", ".join(_FORMS.values())
        raise ConfigError(f"rows must be one of {forms}, but got {spec!r}{hint}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"`seed` must be a whole number in [0, 2**32), but got {seed}")
    if kind == "libsvm":
        return _libsvm(spec, rest, Path(_FOLDER).expanduser() if folder is None else folder)
    if kind == "digits":
        if colon:
            raise ConfigError(f"`digits` takes nothing after its name, but got {spec!r}")
        return image_rows(Digits())
    if kind == "npz":
        path = _path(spec, rest)
        if holds_features(path):
            return feature_rows(path)
        modified_ns = path.stat().st_mtime_ns if path.exists() else 0
        return image_rows(NpzFile(path=str(path), modified_ns=modified_ns))
    options = {"seed": seed} | _options(spec, rest)
    for key in ("n", "d") if kind == "pca" else ("n", "d", "density"):
        if key not in options:
            raise ConfigError(f"`{_FORMS[kind]}` is the form, but {spec!r} does not give {key}")
    options["dim"] = options.pop("d")
    _check_size(spec, options)
    return pca_rows(**options) if kind == "pca" else SparseRows(**options)


def _check_size(spec: str, options: dict[str, Any]) -> None:
    """Check, before a row is drawn, that machines could hold the rows."""
    dense = options["dim"] * 4
    row_bytes = dense if "density" not in options else options["density"] * options["dim"] * 12 + 16
    size_bytes = options["n"] * row_bytes
    if size_bytes > _MOST_BYTES:
        raise ConfigError(
            f"generated rows must take {_MOST_BYTES >> 40} TiB of memory at most, but those of "
            f"{spec!r} take {size_bytes / 2**40:.3g} TiB: give a smaller n or d"
        )


def _libsvm(spec: str, rest: str, folder: Path) -> RowSource:
    # A path may have commas and equals signs: only known options at its end are no part of it.
    path, found = rest, ""
    while (cut := path.rpartition(","))[1] and cut[2].startswith(("dim=", "dtype=", "shuffle=")):
        path, found = cut[0], f"{cut[2]},{found}"
    options = _options(spec, found)
    return libsvm_rows(
        _path(spec, path),
        folder.resolve(),
        columns=options.get("dim"),
        dtype=options.get("dtype", "float64"),
        shuffle=options.get("shuffle", True),
    )


def _path(spec: str, rest: str) -> Path:
    if not rest:
        raise ConfigError(f"a spec must name a file, but the path in {spec!r} is empty")
    return Path(rest).expanduser().resolve()  # absolute: a worker may run in another folder


def _choice(**choices: Any) -> Callable[[str], Any]:
    return choices.__getitem__


def _number(kind: type, low: float, high: float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        number = kind(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return read


_TYPES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "n": ("a whole number >= 1", _number(int, 1, 2**40)),
    "d": ("a whole number in [1, 2**31)", _number(int, 1, 2**31 - 1)),
    "dim": ("a whole number in [1, 2**31)", _number(int, 1, 2**31 - 1)),
    "seed": ("a whole number in [0, 2**32)", _number(int, 0, 2**32 - 1)),
    "density": ("a number in (0, 1]", _number(float, 1e-12, 1.0)),
    "dtype": ("float64 or float32", _choice(float64="float64", float32="float32")),
    "shuffle": ("yes or no", _choice(yes=True, no=False)),
}


def _options(spec: str, rest: str) -> dict[str, Any]:
    """Return the values of `key=value,key=value`, of the keys that the spec's form names."""
    form = _FORMS[spec.partition(":")[0]]
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in _TYPES or f"{key}=" not in form:
            raise ConfigError(f"`{form}` is the form, but {spec!r} has the unknown part {part!r}")
        if key in options:
            raise ConfigError(f"`{form}` is the form, but {spec!r} gives {key} twice")
        expected, read = _TYPES[key]
        try:
            options[key] = read(value)
        except (KeyError, ValueError):
            raise ConfigError(
                f"`{form}` is the form, with {key}={expected}, but {spec!r} has {part!r}"
            ) from None
    return options
