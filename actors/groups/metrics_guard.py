"""Metrics are for those who look on: whatever goes wrong with them ends no run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

__all__ = ["MetricsGuard"]

_log = logging.getLogger(__name__)


class MetricsGuard:
    """Lets metrics be made and set until that fails, which is logged once.

    Args:
        who: publishes them.
    """

    def __init__(self, who: str) -> None:
        self.works = True
        """Whether nothing has failed yet."""
        self._who = who

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Make or set metrics in here, if `works`."""
        try:
            yield
        except Exception:
            self.works = False
            _log.warning("%s publishes no metrics any more", self._who, exc_info=True)
