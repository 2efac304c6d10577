"""Any rules of the parameter server under the plainest of virtual clocks.

A message takes what it is said to take, links and certificates take nothing, nobody is lost. For
the methods of `ServerSettings` and for all that may happen on the way there is `simulate`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from actors.server import Bound, Ends, ServerLoop
from actors.server_messages import Order, Push, Reply
from actors.server_protocols import ServerRule, WorkerRule
from actors.server_worker import WorkerLoop
from raylab.errors import ConfigError

__all__ = ["run_rules"]


def run_rules(
    server: ServerRule,
    workers: Sequence[WorkerRule],
    ends: Ends,
    *,
    seconds: Callable[[int, Push], float],
    bound: Bound | None = None,
) -> ServerLoop:
    """Run until the end, and return the server's loop, with its rows, each with `time_s`.

    Args:
        server: its rule.
        workers: the rules of workers 0, 1, ….
        ends: of the run.
        seconds: from a worker and its message to the time that it takes to compute it.
        bound: of the staleness; None: any.

    Raises:
        ConfigError: nothing ends the run.
    """
    if ends.samples is None and ends.messages is None:
        raise ConfigError("a run must end by samples or messages, if not by its tolerance")
    loop = ServerLoop(server, bound or Bound(), ends)
    loops = [WorkerLoop(rule) for rule in workers]
    # Of messages that are done at one time the lower worker's comes first.
    due: list[tuple[float, int, Push]] = []

    def follow(orders: Sequence[Order], now: float) -> None:
        for order in orders:
            if not isinstance(order.message, Reply):
                loops[order.worker].heard(order.message)
                continue
            proof = loops[order.worker].replied(order.message)
            if proof is not None:
                follow(loop.proved(order.worker, proof), now)
            push = None
            while order.message.task is not None and push is None:
                push = loops[order.worker].compute()
            if push is not None:
                when = now + seconds(order.worker, push)
                heapq.heappush(due, (when, order.worker, push))
        for row in loop.rows:
            row.setdefault("time_s", now)

    loop.expect(range(len(loops)))
    for worker in range(len(loops)):
        follow(loop.joined(worker), 0.0)
    while due:
        now, worker, push = heapq.heappop(due)
        follow(loop.arrived(worker, push), now)
    return loop
