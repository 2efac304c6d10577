"""The memory of this process and of all that it has started, by what each is, and its peak.

Linux only: PSS of /proc/*/smaps_rollup, which counts a page that k processes share as 1/k for each,
so that the sum over processes counts nothing twice.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from types import TracebackType

__all__ = ["MemoryWatch"]

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_ROLES = {"ServerMember": "server", "WorkerMember": "worker", "SolverMember": "solver"}
"""By the name that Ray gives the process of an actor."""


class MemoryWatch:
    """Looks at the memory again and again while it is entered.

    Args:
        every_s: pause between two looks.
    """

    def __init__(self, every_s: float = 0.2) -> None:
        self.peak_bytes = 0
        """Of all processes together."""
        self.peaks: dict[str, int] = {}
        """By role and process: of each for itself, and of Ray's own together; they need not be of
        one moment.
        """
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            sizes: dict[str, int] = {}
            for pid in _family(os.getpid()):
                role = _role(pid)
                name = role if role == "ray" else f"{role} {pid}"
                sizes[name] = sizes.get(name, 0) + _pss(pid)
            for name, size in sizes.items():
                self.peaks[name] = max(size, self.peaks.get(name, 0))
            self.peak_bytes = max(self.peak_bytes, sum(sizes.values()))


def _family(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name of a program stands in brackets and may have blanks.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it has just ended
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _pss(pid: int) -> int:
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def _role(pid: int) -> str:
    if pid == os.getpid():
        return "driver"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "ray"
    return next((role for name, role in _ROLES.items() if name in words), "ray")
