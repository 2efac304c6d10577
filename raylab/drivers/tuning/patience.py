"""A search whose trials all wait for the cluster's room: said, and ended when it takes too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from actors.groups.placement import TELL_S, missing, shortage, total
from raylab.config import run_config
from raylab.drivers.cluster import patience_s, waiting_groups

__all__ = ["Patience"]

_LOOK_S = 1.0
"""Between two looks at what the trials wait for."""


class Patience(Callback):
    """Waits as long as the run of a trial would, its `wait_s`; Ray Tune waits without end, and
    without a word.

    Args:
        say: shows a line to a person.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._looked = 0.0
        self._since: float | None = None
        self._told = False
        self.over: str | None = None
        """Why the search cannot go on; None: it can."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles it to restore a search, which the study does here."""
        return {}

    def on_step_end(self, *_: Any, **info: Any) -> None:
        """See whether anything is done, and if not, how long that has been so."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        order = _held_up(info["trials"])
        if order is None:
            self._since, self._told = None, False
            return
        self._since = now if self._since is None else self._since
        needs, waited = order["bundles"], now - self._since
        wait_s = patience_s(run_config(order["train"]).wait_s)
        if waited >= TELL_S and not self._told:
            self._told = True
            self._say(
                f"waiting up to {wait_s:g} s for the resources of trial {order['number']} "
                f"({missing(needs)})"
            )
        if waited >= wait_s:
            self.over = f"trial {order['number']}: {shortage(needs, 'actor', wait_s)}"


def _held_up(trials: Sequence[Trial]) -> Mapping[str, Any] | None:
    """Return the order of the first trial that waits for resources; None: something is done."""
    if any(trial.status in (Trial.RUNNING, Trial.PAUSED) for trial in trials):
        return None
    waiting = [_key(asked) for asked in waiting_groups()]
    for trial in trials:
        if trial.status == Trial.PENDING and _key(total(trial.config["bundles"])) in waiting:
            order: Mapping[str, Any] = trial.config
            return order
    return None


def _key(asked: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    """Return by what the placement group of a trial is known again: Ray rounds amounts."""
    return frozenset((name, round(amount, 4)) for name, amount in asked.items() if amount)
