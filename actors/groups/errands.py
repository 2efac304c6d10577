"""What others ask of a thread that is busy with its loop: done between two steps, by that thread.

ZeroMQ's sockets and the rule belong to the loop's thread; a new link is opened by it alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from actors.errors import MechanismError

__all__ = ["Errands"]


class Errands:
    """Calls that wait for their turn.

    Args:
        ring: wakes the loop's thread.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]
        self._waiting = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = False

    def ask(self, call: Callable[[], Any]) -> Any:
        """Let the loop's thread make a call; return what it returns, raise what it raises.

        Raises:
            MechanismError: the loop does not run.
        """
        answer: Future[Any] = Future()
        with self._lock:
            if not self._open:
                raise MechanismError("the loop does not run: nobody is there to do this")
            self._waiting.put((call, answer))
        self._ring()
        return answer.result()

    def begin(self) -> None:
        """The loop runs, or will: what is asked from now on waits for it."""
        self._open = True

    def carry_out(self) -> bool:
        """Make the calls that wait, in the loop's thread; tell whether there were any."""
        done = False
        while not self._waiting.empty():
            call, answer = self._waiting.get()
            try:
                answer.set_result(call())
            except Exception as error:
                answer.set_exception(error)
            done = True
        return done

    def end(self) -> None:
        """The loop has ended: who waits is told so."""
        with self._lock:
            self._open = False
        while not self._waiting.empty():
            _, answer = self._waiting.get()
            answer.set_exception(MechanismError("the loop has ended before it could do this"))
