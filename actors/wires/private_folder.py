"""Temporary folders that only their user may enter, and that do not outlive their process for long.

    <temporary folder>/raylab-KIND-XXXXXXXX      mode 0700, locked while its process lives

The lock goes with the process however that ends, also in another container that shares the folder,
so that whoever comes next can tell whose process is dead, and clears up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
import weakref
from pathlib import Path

__all__ = ["PrivateFolder", "clear_stale"]

_NAME = re.compile(r"raylab-(ipc|ray)-[a-z0-9_]{8}")
_OLD_NAME = re.compile(r"raylab-[a-z0-9_]{8}")
"""Of versions that took no lock; they are removed when they are empty, and a day old."""
_YOUNG_S, _DAY_S = 60.0, 86400.0


class PrivateFolder:
    """A new folder for this process.

    Args:
        kind: ipc or ray.
        base: where to make it; None: the usual place for temporary files.
    """

    def __init__(self, kind: str, base: str | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"raylab-{kind}-", dir=base))
        lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove the folder with all that is in it. Never raises, may be called twice."""
        self._end()


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def clear_stale(base: str | None = None) -> list[str]:
    """Remove the folders of this user's processes that are dead; return their names.

    Args:
        base: where they were made.
    """
    where = Path(base or tempfile.gettempdir())
    cleared = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(where):
            # A folder may go at any moment, and what is not as we make it is not ours.
            with contextlib.suppress(OSError):
                if _NAME.fullmatch(entry.name) and _is_mine(entry, _YOUNG_S):
                    if _is_free(entry.path):
                        shutil.rmtree(entry.path, ignore_errors=True)
                        cleared.append(entry.name)
                elif _OLD_NAME.fullmatch(entry.name) and _is_mine(entry, _DAY_S):
                    os.rmdir(entry.path)  # noqa: PTH106 - fails unless it is empty
                    cleared.append(entry.name)
    return sorted(cleared)


def _is_mine(entry: os.DirEntry[str], age_s: float) -> bool:
    found = entry.stat(follow_symlinks=False)
    return (
        stat.S_ISDIR(found.st_mode)
        and stat.S_IMODE(found.st_mode) == stat.S_IRWXU
        and found.st_uid == os.geteuid()
        and time.time() - found.st_mtime >= age_s
    )


def _is_free(path: str) -> bool:
    """Tell whether nobody holds the folder's lock."""
    lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
