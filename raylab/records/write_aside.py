"""A local file that is never half-written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["write_aside"]


def write_aside(target: Path, text: str) -> None:
    """Write `text` beside `target` and rename it, so that whoever reads sees all of it or none.

    Raises:
        OSError: the folder is not there, or cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    aside = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        aside.chmod(0o644)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
