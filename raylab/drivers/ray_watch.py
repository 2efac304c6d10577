"""Sees that a Ray that was started here is alive while a run goes on.

Its head (the GCS) and its node's manager (the raylet) are children of this process, and nobody
starts them again: Ray itself would wait for a minute for what cannot return, and then end the
driver without a word.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import ray

from raylab.drivers.termination import TERMINATION
from raylab.errors import RaylabError

__all__ = ["watch_own"]

_LOOK_S = 1.0
_LEAVE_S = 5.0
"""How long a command may take to come to its end, once it has been told."""
_NAMES = {"gcs_server": "head (the GCS)", "raylet": "node manager (the raylet)"}


def watch_own(clear: Callable[[], None]) -> None:
    """Watch the local Ray that this process has just started, in a thread, until it is left.

    Args:
        clear: removes what a Ray that has died leaves behind.
    """
    node: Any = getattr(ray._private.worker, "_global_node", None)
    processes = getattr(node, "all_processes", None)
    if not isinstance(processes, dict):  # of another version of Ray: then it goes unwatched
        return
    watched = {
        title: info[0].process for name, title in _NAMES.items() if (info := processes.get(name))
    }
    thread = threading.Thread(
        target=_watch, args=(node, watched, clear), name="raylab-ray", daemon=True
    )
    thread.start()


def _watch(node: Any, processes: dict[str, Any], clear: Callable[[], None]) -> None:
    pause = threading.Event()
    while not pause.wait(_LOOK_S):
        if ray._private.worker._global_node is not node:
            return
        dead = [title for title, process in processes.items() if process.poll() is not None]
        if dead:
            # Whoever leaves Ray ends them, too; nothing is connected to it then.
            if ray.is_initialized() and TERMINATION.running:
                _give_up(node, dead[0], clear)
            return


def _give_up(node: Any, title: str, clear: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):
        # Nobody waits for the answer of what is left of it.
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    way_on = TERMINATION.way_on
    text = f"Ray's {title} on this machine has died, and the run with it"
    failure = RaylabError(f"{text}: go on with {way_on}" if way_on else text)
    commanded = TERMINATION.fail(failure)
    if commanded and not commanded.wait(_LEAVE_S):
        # The main thread waits within Ray for an answer that will not come.
        asked = TERMINATION.requested
        line = TERMINATION.line(done=False) if asked else f"error: {failure}"
        sys.stderr.write(f"raylab: {line}\n")
        sys.stderr.flush()
        clear()
        os._exit(TERMINATION.exit_code if asked else failure.exit_code)
