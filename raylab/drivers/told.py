"""The mechanism's errors as the ones that users know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from actors.errors import BatchError, MechanismError, PlacementError
from raylab.errors import DataError, RaylabError, ResourceError

__all__ = ["told"]


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raise the mechanism's errors as the ones that users know."""
    try:
        yield
    except PlacementError as error:
        raise ResourceError(str(error)) from error
    except BatchError as error:
        raise DataError(str(error)) from error
    except MechanismError as error:
        raise RaylabError(str(error)) from error
