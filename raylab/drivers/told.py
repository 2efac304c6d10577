"""What goes wrong in a run, in the words that users know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from actors.errors import BatchError, MechanismError, PlacementError
from raylab.drivers.termination import TERMINATION
from raylab.errors import DataError, RaylabError, ResourceError
from raylab.records import RunFolder

__all__ = ["told"]


@contextlib.contextmanager
def told(folder: RunFolder | None = None) -> Iterator[None]:
    """Raise the mechanism's errors as the ones that users know.

    Args:
        folder: of the run that goes on in the block; None: it is no run.
    """

    def resume() -> str:
        begun = folder is not None and folder.folder.exists("config.yaml")
        return f"raylab resume {folder.folder.uri}" if folder is not None and begun else ""

    try:
        with TERMINATION.resumed_by(resume):
            yield
    except PlacementError as error:
        raise ResourceError(str(error)) from error
    except BatchError as error:
        raise DataError(str(error)) from error
    except MechanismError as error:
        raise RaylabError(str(error)) from error
    except KeyboardInterrupt:
        # Ray makes that of every interruption.
        failure, TERMINATION.failure = TERMINATION.failure, None
        if failure is None:
            raise
        raise failure from None
