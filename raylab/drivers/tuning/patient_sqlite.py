"""SQLite that waits for whoever else has a study's database locked, and says so meanwhile.

SQLite's own waiting is silent, and what Optuna makes of its end speaks of invalid data.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from raylab.errors import ResourceError

__all__ = ["LockWatch", "connection_class"]

T = TypeVar("T")


class LockWatch:
    """How long a database was waited for, and whether that has ended in vain.

    Args:
        path: of the database.
        say: takes a line for the user; None: standard error.
        told_s: seconds between two lines.
        patience_s: how long to wait.
        clock: seconds.
    """

    def __init__(
        self,
        path: Path,
        say: Callable[[str], None] | None = None,
        *,
        told_s: float = 10.0,
        patience_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.told_s = told_s
        self.error: ResourceError | None = None
        """With which waiting has ended."""
        self._path = path
        self._say = say or _to_stderr
        self._patience_s = patience_s
        self._clock = clock

    def patiently(self, act: Callable[[], T]) -> T:
        """Return what `act` returns, tried again for as long as others have the database locked.

        Raises:
            ResourceError: they had it for too long.
        """
        began = self._clock()
        while True:
            try:
                return act()
            except sqlite3.OperationalError as error:  # noqa: PERF203 - a lock is rare
                if "locked" not in str(error):
                    raise
                self._wait(self._clock() - began, error)

    def _wait(self, waited_s: float, error: sqlite3.OperationalError) -> None:
        if self.error is None and waited_s < self._patience_s:
            self._say(
                f"{error}: {self._path} is in use by another process, waiting for it "
                f"({waited_s:.0f} s so far)"
            )
            return
        if self.error is None:
            self.error = ResourceError(
                f"a search must be able to write its study, but {error}: another process has had "
                f"{self._path} for {waited_s:.0f} s: end that (a dashboard, a copy, a transaction "
                f"left open), then raylab tune --resume {self._path.parent}"
            )
        raise self.error from error


def connection_class(watch: LockWatch) -> type[sqlite3.Connection]:
    """Return a class of connections that wait as `watch` does.

    A statement that was refused has changed nothing and taken no lock, since nothing is read within
    a transaction before its first change, so that it can be given again.
    """

    class PatientCursor(sqlite3.Cursor):
        def execute(self, *given: Any) -> Any:
            return watch.patiently(lambda: sqlite3.Cursor.execute(self, *given))

        def executemany(self, *given: Any) -> Any:
            return watch.patiently(lambda: sqlite3.Cursor.executemany(self, *given))

    class PatientConnection(sqlite3.Connection):
        def cursor(self, factory: Any = PatientCursor) -> Any:
            return super().cursor(factory)

        def commit(self) -> None:
            watch.patiently(super().commit)

    return PatientConnection


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")
