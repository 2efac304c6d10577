"""What a message between two neighbours costs, timed by sending some there and back.

    sender    put ─▶ ............ ◀─ take           there and back: 2 latencies
    receiver         take ▪ put

A latency is the time from before `put` until the other side has the message. A stage that has work
to do meanwhile does not wait for it, but putting and taking are the stage's own work and delay it
under every method. Before each probe the sender sleeps, because a processor that has just slept or
computed runs the handling several times slower than a busy loop does: that is how a run finds it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from actors.messages import Kind, Message
from actors.protocols import Tensors

__all__ = ["MessageTimes", "echo", "probe"]

_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTimes:
    """What one message costs, in seconds.

    Args:
        latency_s: from before its `put` until the receiver, which waits for it, has it.
        put_s: the sender's part of it.
        take_s: the receiver's own time for a message that is there already.
    """

    latency_s: float
    put_s: float
    take_s: float


def probe(
    put: Callable[[Message], None], take: Callable[[], Message], payload: Tensors, repeats: int
) -> MessageTimes:
    """Time messages to a neighbour that runs `echo` with twice as many repeats.

    Args:
        put: sends to it.
        take: waits for what comes back.
        payload: of each message.
        repeats: of each timing; medians are returned.
    """
    latencies, puts, takes = [], [], []
    for index in range(repeats):
        time.sleep(_PAUSE_S)
        began = time.perf_counter()
        put(Message(Kind.PROBE, 2 * index, payload))
        handed_over = time.perf_counter()
        take()
        latencies.append((time.perf_counter() - began) / 2)
        puts.append(handed_over - began)
        time.sleep(_PAUSE_S)
        put(Message(Kind.PROBE, 2 * index + 1, payload))
        # Long enough for the message to be back before it is taken.
        time.sleep(_PAUSE_S + 2 * latencies[-1])
        began = time.perf_counter()
        take()
        takes.append(time.perf_counter() - began)
    return MessageTimes(
        latency_s=statistics.median(latencies),
        put_s=statistics.median(puts),
        take_s=statistics.median(takes),
    )


def echo(put: Callable[[Message], None], take: Callable[[], Message], repeats: int) -> None:
    """Send what a `probe` of `repeats` sends back to it."""
    for _ in range(2 * repeats):
        put(take())
