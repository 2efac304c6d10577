"""Lines of Ray's processes that the driver does not repeat: raylab tells the same in its own line.

Ray prints in the driver what its processes print. Lines that are part of every start, and those
about a loss that the run has borne, say nothing that is still to be done. All others are printed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import ray

__all__ = ["leave_out_the_known", "left"]

_TOLD_BY_DRIVER = ("TrainController",)
"""Actors whose errors are raised in the driver, by Ray Train's `fit`."""
_KNOWN = re.compile(
    "|".join(
        (
            r"^Reporting training result \d+: ",
            r"'PreemptionWatcher' .* has constructor arguments in the object store",
            r"to the metrics exporter agent",
            r"metrics_agent_client",
            r"^A worker died or was killed while executing a task by an unexpected system error",
            r"^\s*\[state-dump\]",
            r"^\s*\[[^\]]* I \d+ \d+\] \(raylet\)",
        )
    )
)
_OF_DEAD_RAYLET = "Raylet is terminated."
"""Begins a message of one line, and of the last lines of the raylet's log, each further in."""


def leave_out_the_known() -> None:
    """Leave known lines out of what Ray prints in this process, until Ray is left."""
    found: Any = getattr(ray._private, "ray_logging", None)
    dispatcher: Any = getattr(found, "global_worker_stdstream_dispatcher", None)
    for name, handler in list(getattr(dispatcher, "handlers", ())):
        if name == "ray_print_logs" and not isinstance(handler, _Leaving):
            dispatcher.remove_handler(name)
            dispatcher.add_handler(name, _Leaving(handler))
    logger = logging.getLogger("ray._private.worker")
    if _is_news not in logger.filters:
        logger.addFilter(_is_news)


def left(lines: list[str], actor: str | None) -> list[str]:
    """Return the lines that are printed.

    Args:
        lines: of one process.
        actor: name of its class; None: it is none.
    """
    if actor in _TOLD_BY_DRIVER:
        return []
    # What is left of such a message without its further lines would only tell to look there.
    if lines and lines[0].startswith(_OF_DEAD_RAYLET):
        return []
    return [line for line in lines if not _KNOWN.search(line)]


class _Leaving:
    """Prints what is left.

    Args:
        printed: Ray's handler.
    """

    def __init__(self, printed: Callable[[Any], None]) -> None:
        self._printed = printed

    def __call__(self, data: Any) -> None:
        lines = left(list(data["lines"]), data.get("actor_name"))
        if lines:
            self._printed({**data, "lines": lines})


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether an error that nobody fetched is another's than of raylab's own actors, whose
    losses are told by the run.
    """
    text = record.getMessage()
    return not (text.startswith("Unhandled error") and "actors." in text)
