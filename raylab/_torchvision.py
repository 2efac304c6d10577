"""Import torchvision, also where its C++ operators do not load beside the installed torch.

A torchvision wheel built for CUDA, say, cannot load its operators beside a torch without CUDA. All
of its Python (models, data sets, transforms) would work nevertheless, but the import stops:
torchvision attaches shape functions to two operators whose schemas only the C++ library declares,
and torch answers `operator torchvision::nms does not exist`. Declaring these schemas is enough.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from types import ModuleType
from typing import Any

import torch

__all__ = ["import_torchvision"]

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_lock = threading.Lock()
_declared: list[torch.library.Library] = []  # a schema lives only as long as its Library object


def import_torchvision() -> ModuleType:
    """Return the torchvision package, imported without its C++ operators if they do not load.

    Where the operators load, this is `import torchvision` and nothing else. Where they do not, the
    schemas of `nms` and `qnms` are declared and the import is tried again; calling one of the two
    then still fails, with torch's message that the operator has no kernel.

    After this call `from torchvision import datasets` and the like work anywhere in the process.

    >>> import_torchvision().__name__
    'torchvision'

    Returns:
        The package, with `models`, `datasets` and `transforms` loaded.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: the import failed for a reason other than the missing schemas.
    """
    with _lock:
        try:
            return _import()
        except RuntimeError as error:
            if "torchvision::" not in str(error) or "does not exist" not in str(error):
                raise
        # The failed import took `torchvision` out of sys.modules but left its submodules there,
        # some half executed; without this the second import would pick these up.
        for name in [name for name in sys.modules if name.startswith("torchvision.")]:
            del sys.modules[name]
        _declare_missing_schemas()
        return _import()


def _import() -> ModuleType:
    with warnings.catch_warnings():
        # Decoding in C++ is optional and not used here: images are read with Pillow.
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        return importlib.import_module("torchvision")


def _declare_missing_schemas() -> None:
    # FRAGMENT and not DEF: only one DEF per namespace may exist, and it belongs to torchvision.
    make_library: Any = torch.library.Library  # torch leaves it without annotations
    library = make_library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _declared.append(library)
