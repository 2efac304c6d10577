"""The end that a signal asks of the command line: a checkpoint, one line, exit code 128 + signal.

    signal ──▶ does a run watch for it?   yes ──▶ `requested`: the run saves, then raises Terminated
                                          no  ──▶ Terminated, at once
    a second signal, or GRACE_S later         ──▶ Terminated, at once

Only `raylab` on the command line installs handlers. In a user's own process `requested` is never
true and his handlers stay as they are. No Ray in here: simulations end in the same way.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from raylab.errors import RaylabError

__all__ = ["GRACE_S", "TERMINATION", "LastCheckpoint", "Terminated", "Termination"]

GRACE_S = 20.0
"""How long a run may take for its last checkpoint; Kubernetes kills after 30 s."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(BaseException):
    """A signal has asked for the process's end. As with KeyboardInterrupt nobody should catch it
    by catching Exception.
    """


class Termination:
    """What has asked for the end of this process, and where its run can be resumed."""

    def __init__(self) -> None:
        self.signum: int | None = None
        """The signal that has come; None: none has."""
        self.failure: RaylabError | None = None
        """What has made it impossible to go on, see `fail`."""
        self._where: Callable[[], str] = str
        self._watching: Callable[[int], None] | None = None
        self._handled = False
        self._over = threading.Event()
        self._runs = 0

    @property
    def running(self) -> bool:
        """Whether a run goes on in this process."""
        return self._runs > 0

    @property
    def way_on(self) -> str:
        """The command that goes on with what runs now; empty: none does."""
        return self._where()

    @property
    def requested(self) -> bool:
        """Whether the process is to end."""
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a process that was asked to end, as shells count it."""
        return 128 + (self.signum or 0)

    def line(self, *, done: bool) -> str:
        """Return what to tell the user.

        Args:
            done: the command has come to its end all the same.
        """
        ended = f"ended by {signal.Signals(self.signum or 0).name}"
        where = "" if done else self.way_on
        return f"{ended}: go on with {where}" if where else ended

    def check(self) -> None:
        """End here if the process is to end.

        Raises:
            Terminated: it is.
        """
        if self.requested:
            raise Terminated

    # ----------------------------------------------------------------- of the command line

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals as requests during the block; in another thread than the main one, or
        where the caller ignores a signal (as nohup does), it is left as it is.
        """
        self.signum, self.failure, self._where = None, None, str
        self._over = threading.Event()
        main = threading.current_thread() is threading.main_thread()
        mine = [each for each in _SIGNALS if main and signal.getsignal(each) != signal.SIG_IGN]
        before = {each: signal.signal(each, self._take) for each in mine}
        self._handled = signal.SIGTERM in before
        try:
            yield
        finally:
            self._over.set()
            self._handled, self.signum, self.failure = False, None, None
            for each, handler in before.items():
                signal.signal(each, handler)

    # ----------------------------------------------------------------- of runs

    @contextlib.contextmanager
    def resumed_by(self, where: Callable[[], str]) -> Iterator[None]:
        """Tell the user of this command after the block has been ended.

        Args:
            where: returns the command that goes on; empty: none does.
        """
        before, self._where = self._where, where
        self._runs += 1
        try:
            yield
            # After an error the line is still to be said.
            self._where = before
        finally:
            self._runs -= 1

    @contextlib.contextmanager
    def watched(self, take: Callable[[int], None] | None = None) -> Iterator[None]:
        """Let the block end by itself at the first signal: it looks at `requested`.

        Args:
            take: called with the signal, in its handler.
        """
        before, self._watching = self._watching, take or (lambda _: None)
        try:
            yield
        finally:
            self._watching = before

    def fail(self, error: RaylabError) -> threading.Event | None:
        """Raise an error in the main thread, from any thread, whatever the main thread waits for.

        Where it comes out as KeyboardInterrupt (Ray makes that of every interruption) `failure` is
        what is meant.

        Returns:
            What is set when the command has come to its end; None: this is a user's process.
        """
        self.failure = error
        if self._handled:
            os.kill(os.getpid(), signal.SIGTERM)
            return self._over
        _thread.interrupt_main()
        return None

    # ----------------------------------------------------------------- inside

    def _take(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's
        if self.failure is not None:
            raise self.failure
        first, self.signum = self.signum is None, self.signum or signum
        if signum == getattr(signal, "SIGHUP", None):
            _let_go_of_terminals()
        if first:
            threading.Thread(target=self._remind, name="raylab-grace", daemon=True).start()
            if self._watching is not None:
                self._watching(signum)
                return
        raise Terminated

    def _remind(self) -> None:
        """Send the signal once more when the time is over."""
        threading.Event().wait(GRACE_S)
        if self._handled and self.signum is not None:
            os.kill(os.getpid(), self.signum)


TERMINATION = Termination()
"""Of this process."""


class LastCheckpoint:
    """A run's last checkpoint, made between a signal and the run's end, as a context around it.

    Args:
        begin: asks the run for a checkpoint.
        committed: step of the newest whole checkpoint.
        on: whether the run keeps checkpoints at all; else a signal ends it at once.
    """

    def __init__(
        self, begin: Callable[[], None], committed: Callable[[], int], *, on: bool
    ) -> None:
        self._begin = begin
        self._committed = committed
        self._watched: Any = TERMINATION.watched() if on else contextlib.nullcontext()
        self._before: int | None = None

    def __enter__(self) -> LastCheckpoint:
        self._watched.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watched.__exit__(*error)

    def look(self) -> None:
        """Do what is due; called while the run goes on.

        Raises:
            Terminated: the process is to end, and the checkpoint is there.
        """
        if not TERMINATION.requested:
            return
        if self._before is None:
            self._before = self._committed()
            self._begin()
        elif self._committed() > self._before:
            raise Terminated


def _let_go_of_terminals() -> None:
    """Send what is still printed nowhere if the terminal is gone: writing to it would fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, ImportError, AttributeError):
            import termios

            number = stream.fileno()
            try:
                termios.tcgetattr(number)
            except termios.error as error:
                if error.args[0] == _EIO:
                    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a descriptor
                        os.dup2(nowhere.fileno(), number)


_EIO = 5
