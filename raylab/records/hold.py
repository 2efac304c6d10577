"""`Hold`: the right to write to a folder, which one process has at a time.

<folder>/.held-<id>.json        a claim: host, pid, since when

    take    somebody alive has a claim ──▶ refused
            write a claim of my own, look again:
              no other that is alive   ──▶ mine
              a smaller id among them  ──▶ withdraw, refused
              larger ids alone         ──▶ they withdraw; if one has not after a moment, as above
    held    renew the claim every 15 s
    end     delete it

Each writes before it looks, so of two that begin at once one at least sees the other, and never
both win. That asks of a storage that a file which is written is in every later list of its folder:
local disks and today's object stores have it, none of pyarrow's file systems offers more to all.
Claims have names of their own, so that a dead one can be deleted without deleting a new one.

A claim is dead when its process is, which the same machine can tell at once, or when it was not
renewed for a minute, by the storage's own clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from raylab.errors import ConfigError, DataError
from raylab.records.storage import Storage, vanished

__all__ = ["RENEW_S", "STALE_S", "Hold", "Holder"]

RENEW_S = 15.0
"""Between two renewals of a claim."""
STALE_S = 60.0
"""After which a claim that was not renewed is dead."""
_YIELD_S = 3.0
"""For others, who have begun at the same time, to withdraw."""
_PREFIX = ".held-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that has a claim.

    Args:
        host: name of its machine.
        machine: boot and process namespace; within one, a pid means one process at a time.
        pid: of the process.
        began: when it began, in the kernel's ticks; None: not known here.
        since: when it made the claim.
    """

    host: str
    machine: str
    pid: int
    began: int | None
    since: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            began=_began(os.getpid()),
            since=f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
        )

    def alive(self) -> bool | None:
        """Return whether the process is there, None where this process cannot tell."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # another user's
            pass
        began = _began(self.pid)
        return began is None or self.began is None or (began == self.began and began >= 0)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class Hold:
    """A claim on a folder that has won; made by `take`, ended by `release` or with its process.

    Args:
        folder: that is held.
        name: of the claim's file.
    """

    def __init__(self, folder: Storage, name: str) -> None:
        self.folder = folder
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._name = name
        arguments = (folder, name, self._ended, self._lost)
        self._thread = threading.Thread(
            target=_renew, args=arguments, name="raylab-hold", daemon=True
        )
        self._thread.start()
        # A process that forgets the hold, or that ends by an exception, gives it back, too.
        self._finalizer = weakref.finalize(self, _withdraw, folder, name, self._ended, os.getpid())

    @classmethod
    def take(cls, folder: Storage, *, patience_s: float = 0.0) -> Hold:
        """Take a folder that is there.

        Args:
            folder: to take.
            patience_s: how long to wait for another to end, or for its claim to be dead.

        Raises:
            ConfigError: another process has it; the message says who, and the way out.
        """
        ends = time.monotonic() + patience_s
        while True:
            try:
                return cls(folder, _won(folder))
            except ConfigError:
                if time.monotonic() >= ends:
                    raise
            time.sleep(1.0)

    @staticmethod
    def refuse_others(folder: Storage) -> None:
        """See that no process of this machine holds a folder, without taking it.

        Raises:
            ConfigError: one does.
        """
        for name in folder.hidden(_PREFIX):
            holder = _read(folder, name)
            if holder is not None and holder.alive():
                raise _refusal(folder, name, holder)

    @classmethod
    @contextlib.contextmanager
    def of(cls, folder: Storage) -> Iterator[Storage]:
        """Hold a folder during a block; made for it, and removed after it if nothing is in it.

        Raises:
            ConfigError: another process has it, or it cannot be made.
        """
        made = folder.make()
        hold = cls.take(folder)
        try:
            yield folder
        finally:
            hold.release()
            folder.remove_empty(made)

    def check(self) -> None:
        """See that the folder is there and still held; on a local disk by a look at it.

        Raises:
            DataError: the folder was moved or deleted, or another process has taken it.
        """
        if self.folder.local is not None:
            here = self.folder.local
            if (here / self._name).exists():
                return
            gone = not here.is_dir()
        elif not self._lost.is_set():
            return
        else:
            gone = not self.folder.names()
        if gone:
            raise DataError(vanished(self.folder.uri))
        raise DataError(
            f"a run's folder must be held by its process until the run has ended, but the claim "
            f"{self.folder}/{self._name} was deleted, or found dead by another process: see who "
            f"uses the folder, and go on with raylab resume {self.folder}"
        )

    @property
    def vanished(self) -> bool:
        """Whether the folder is no longer there, and nothing in its place."""
        return not self.folder.names() and not self.folder.hidden(_PREFIX)

    def release(self) -> None:
        """Give the folder back; once is enough."""
        self._finalizer()
        self._thread.join(timeout=_YIELD_S)


def _won(folder: Storage) -> str:
    """Return the name of a claim that has won."""
    Hold.refuse_others(folder)
    mine = f"{_PREFIX}{uuid.uuid4().hex[:12]}.json"
    folder.write(mine, json.dumps(asdict(Holder.here()), indent=2).encode(), hidden=True)
    try:
        ends = time.monotonic() + _YIELD_S
        while True:
            there = folder.hidden(_PREFIX)
            now = there.pop(mine, None)
            rivals = {name: _read(folder, name) for name in sorted(there)}
            for name, holder in list(rivals.items()):
                if not _lives(holder, there[name], now):
                    folder.delete(name, hidden=True)
                    del rivals[name]
                elif holder is None and name not in folder.hidden(_PREFIX):
                    del rivals[name]  # withdrawn between the two looks
            if not rivals:
                return mine
            first, holder = next(iter(rivals.items()))
            if first < mine or time.monotonic() > ends:
                raise _refusal(folder, first, holder)
            time.sleep(0.05)
    except BaseException:
        with contextlib.suppress(DataError):
            folder.delete(mine, hidden=True)
        raise


def _refusal(folder: Storage, name: str, holder: Holder | None) -> ConfigError:
    far = holder is None or holder.alive() is None
    way_out = "wait until it has ended, or end it"
    if far:
        way_out += (
            f"; where it is no more, its claim lapses {STALE_S:g} s after its last renewal, or "
            f"delete {folder}/{name}"
        )
    return ConfigError(
        f"a folder must be used by one process at a time, but {folder} is held by "
        f"{holder or 'another process'}: {way_out}"
    )


def _lives(holder: Holder | None, written: float | None, now: float | None) -> bool:
    """Tell whether a claim counts.

    Args:
        holder: None: it cannot be read.
        written: when it was written or renewed.
        now: by the same clock.
    """
    alive = None if holder is None else holder.alive()
    if alive is not None:
        return alive
    return written is None or now is None or now - written < STALE_S


def _read(folder: Storage, name: str) -> Holder | None:
    """Return who has made a claim, None where that cannot be read."""
    try:
        content: Any = json.loads(folder.read(name, hidden=True))
        return Holder(**content) if isinstance(content["pid"], int) else None
    except (DataError, ValueError, TypeError, KeyError):
        return None


def _renew(folder: Storage, name: str, ended: threading.Event, lost: threading.Event) -> None:
    """Renew a claim until its hold has ended, or it is no longer there."""
    while not ended.wait(RENEW_S):
        # A storage that does not answer may answer again, before the claim is dead.
        with contextlib.suppress(DataError):
            if not folder.renew(name):
                lost.set()
                return


def _withdraw(folder: Storage, name: str, ended: threading.Event, pid: int) -> None:
    ended.set()
    # A child that was forked off does not end the hold of its parent.
    if os.getpid() == pid:
        with contextlib.suppress(DataError):
            folder.delete(name, hidden=True)


def _machine() -> str:
    """Return within which system a pid means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"host {socket.gethostname()}"


def _began(pid: int) -> int | None:
    """Return when a process began, -1 for one that has ended and was not waited for, None where
    that cannot be known.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
