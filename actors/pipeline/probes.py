"""What a stage and its messages cost, timed before a run.

A message is sent to the neighbour and back:

    sender    put ─▶ ............ ◀─ take           there and back: 2 latencies
    receiver         take, put

A latency is the time from before `put` until the other side has the message. A stage that has work
to do meanwhile does not wait for it, but putting and taking are the stage's own work and delay it
under every method. Before each probe the sender sleeps, because a processor that has just slept or
computed runs the handling several times slower than a busy loop does: that is how a run finds it.
It sleeps longer before the message of a whole batch than before that of a micro-batch, as a stage
does: the longer a processor has slept, the slower it begins.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from actors.pipeline.protocols import StageRule
from actors.units import Tensors
from actors.wires.messages import Kind, Message

__all__ = ["BATCH_PAUSE_S", "MessageTimes", "StageTimes", "echo", "probe", "time_stage"]

BATCH_PAUSE_S = 0.005
"""Before the message of a whole batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTimes:
    """What one message costs, in seconds.

    Args:
        latency_s: from before its `put` until the receiver, which waits for it, has it.
        put_s: the sender's part of it.
        take_s: the receiver's own time for a message that is there already.
        cpu_s: processor time of a process for one `put` and one `take`, all its threads.
    """

    latency_s: float
    put_s: float
    take_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """What one batch costs a stage, in seconds.

    Args:
        forward_s: of the forward.
        backward_s: of the backward and its share of an update.
        cpu_s: processor time of both, all threads.
    """

    forward_s: float
    backward_s: float
    cpu_s: float

    @property
    def total_s(self) -> float:
        """Forward and backward, in seconds."""
        return self.forward_s + self.backward_s


def time_stage(rule: StageRule, inputs: Tensors, repeats: int) -> StageTimes:
    """Return the median times of a stage on `inputs`."""
    began_s = time.process_time()
    times = rule.measure(inputs, repeats)
    spent_s = time.process_time() - began_s
    return StageTimes(
        forward_s=statistics.median(forward for forward, _ in times),
        backward_s=statistics.median(backward for _, backward in times),
        cpu_s=spent_s / repeats,
    )


def probe(
    put: Callable[[Message], None],
    take: Callable[[], Message],
    payload: Tensors,
    repeats: int,
    pause_s: float = BATCH_PAUSE_S,
) -> MessageTimes:
    """Time messages to a neighbour that runs `echo` with twice as many repeats.

    Args:
        put: sends to it.
        take: waits for what comes back.
        payload: of each message.
        repeats: of each timing; medians are returned.
        pause_s: sleep before each probe, seconds.
    """
    latencies, puts, takes = [], [], []
    began_cpu_s = time.process_time()
    for index in range(repeats):
        time.sleep(pause_s)
        began = time.perf_counter()
        put(Message(Kind.PROBE, 2 * index, payload))
        handed_over = time.perf_counter()
        take()
        latencies.append((time.perf_counter() - began) / 2)
        puts.append(handed_over - began)
        time.sleep(pause_s)
        put(Message(Kind.PROBE, 2 * index + 1, payload))
        # Long enough for the message to be back before it is taken.
        time.sleep(pause_s + 2 * latencies[-1])
        began = time.perf_counter()
        take()
        takes.append(time.perf_counter() - began)
    return MessageTimes(
        latency_s=statistics.median(latencies),
        put_s=statistics.median(puts),
        take_s=statistics.median(takes),
        cpu_s=(time.process_time() - began_cpu_s) / (2 * repeats),
    )


def echo(put: Callable[[Message], None], take: Callable[[], Message], repeats: int) -> None:
    """Send what a `probe` of `repeats` sends back to it."""
    for _ in range(2 * repeats):
        put(take())
