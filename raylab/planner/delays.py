"""Which link delay hides a link's messages, and the period that delays allow.

Between F(n-d) and B(n-d) stage k has d periods of work of its own. In that time its features must
reach stage k+1, be forwarded and back-propagated there, and the gradient come back:

    f_{k+1} + b_{k+1} + 2 c_k <= d P        P: the slowest stage's f + b (plus f for replay)

so the period of the pipeline is the largest of P and (f_{k+1} + b_{k+1} + 2 c_k) / d_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["choose_link_delays", "predicted_period_s"]

TOLERANCE = 0.02
"""Share of the period that a link may add and still count as hidden: timings are no better."""


def _work(
    stage_times: Sequence[tuple[float, float]], link_delays: Sequence[int], replay: bool
) -> list[float]:
    """Return each stage's own time a batch; it replays if any link above it has a delay."""
    return [
        f + b + (f if replay and any(link_delays[k:]) else 0.0)
        for k, (f, b) in enumerate(stage_times)
    ]


def choose_link_delays(
    stage_times: Sequence[tuple[float, float]],
    message_times: Sequence[float],
    *,
    replay: bool = False,
    tolerance: float = TOLERANCE,
) -> list[int]:
    """Return the smallest delay >= 1 of each link that hides its messages.

    Args:
        stage_times: (forward, backward) of each stage, in seconds.
        message_times: of one message over each link, in seconds.
        replay: the stages below re-run their forward (FR).
        tolerance: slow-down that is accepted for less staleness, as a share of the period.

    >>> choose_link_delays([(1, 2), (1, 2), (1, 1)], [0.2, 0.2])
    [2, 1]
    """
    work = _work(stage_times, [1] * len(message_times), replay)
    period = max(work) * (1 + tolerance)
    if period <= 0:
        return [1] * len(message_times)
    return [
        max(1, math.ceil((work[k + 1] + 2 * message) / period - 1e-9))
        for k, message in enumerate(message_times)
    ]


def predicted_period_s(
    stage_times: Sequence[tuple[float, float]],
    message_times: Sequence[float],
    link_delays: Sequence[int],
    *,
    replay: bool = False,
) -> float:
    """Return the time between two batches in a full pipeline, in seconds.

    A link of delay 0 locks the stages on both sides: their work and messages add up.

    Args:
        stage_times: (forward, backward) of each stage, in seconds.
        message_times: of one message over each link, in seconds.
        link_delays: of each link.
        replay: stages with a delay re-run their forward (FR).
    """
    work = _work(stage_times, link_delays, replay)
    # From the top: `locked` is the time from features to gradient over a chain of delay-0 links.
    locked = work[-1]
    period = work[-1]
    for k in range(len(link_delays) - 1, -1, -1):
        round_trip = locked + 2 * message_times[k]
        if link_delays[k] == 0:
            locked = work[k] + round_trip
        else:
            period = max(period, round_trip / link_delays[k])
            locked = work[k]
        period = max(period, locked)
    return period
