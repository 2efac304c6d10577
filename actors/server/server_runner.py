"""The server at work: messages of whichever worker into the loop, its orders to the workers.

No Ray in here: the same runner runs in an actor, and with its workers in one process for a test.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import LinkError
from actors.groups.story import told
from actors.server.loop import ServerLoop
from actors.server.messages import Order, Proof, Push, Reply
from actors.server.meter import ServerMeter
from actors.server.seat import Seat
from actors.server.shard_links import ShardLinks
from actors.wires.doorbell import Doorbell

__all__ = ["ASKED", "SUSPENDED", "ServerRunner"]

SUSPENDED = "other workers"
"""Why a run ends that goes on at once with other workers, from the checkpoint of its end."""
ASKED = "asked"
"""Why a run ends that its driver wants no more of."""
_WHO = "the server"


class ServerRunner:
    """Run one server to its end.

    Args:
        loop: of the server.
        emit: takes each row of metrics.
        epoch_samples: n.
        bell: to wait at.
        checkpoints: when to save, counted in updates.
        save: takes the server's part of a checkpoint, with its step.
        shards: the other shards of w, whose lead is the loop's rule; None: there are none.
    """

    def __init__(
        self,
        loop: ServerLoop,
        emit: Callable[[dict[str, Any]], None],
        *,
        epoch_samples: int,
        bell: Doorbell[tuple[str, int]],
        checkpoints: CheckpointPlan | None = None,
        save: Callable[[int, dict[str, Any]], None] | None = None,
        shards: ShardLinks | None = None,
    ) -> None:
        self.loop = loop
        self.cut: list[tuple[int, str]] = []
        """Workers whose link has ended, and how, since somebody has emptied the list."""
        self._emit = emit
        self._plan = checkpoints or CheckpointPlan()
        self._save = save
        self._bell = bell
        self._shards = shards
        self._seats: dict[int, Seat] = {}
        self.committed = -1
        """Step of the newest checkpoint of which every part is known to be written."""
        self._begun: int | None = None
        self._uncommitted = -1
        self._since = (loop.state.version, time.perf_counter())
        self._meter = ServerMeter(epoch_samples)
        self.begun_with = self.totals()
        """What had been counted where the run goes on from."""
        self._suspending = False
        self._late: dict[int, tuple[float, Seat]] = {}

    # ------------------------------------------------------------------ workers

    def start(
        self,
        seats: Mapping[int, Seat],
        part: Mapping[str, Any] | None = None,
        adopt: Callable[[Any], None] | None = None,
        late: Mapping[int, float] | None = None,
    ) -> None:
        """Begin, with all workers there.

        Args:
            seats: of the workers.
            part: of a checkpoint, to go on from.
            adopt: called with the rule then, where the workers are others than the checkpoint's.
            late: workers that join later, and by how many seconds.
        """
        if part is not None:
            with told(_WHO, f"checkpoint {part['step']}"):
                self.loop.rule.restore(part["rule"])
            self.loop.state.restore(part["loop"])
            self._meter.restore(part["figures"], self.loop.state.samples)
            self._since = (self.loop.state.version, time.perf_counter())
            self.committed = part["step"]
            self.begun_with = self.totals()
        if adopt is not None:
            adopt(self.loop.rule if self._shards is None else self._shards.lead.rule)
        late = late or {}
        self.loop.expect(sorted(seats))
        now = time.perf_counter()
        self._late = {worker: (now + late_s, seats[worker]) for worker, late_s in late.items()}
        for worker in sorted(seats):
            if worker not in late:
                self.join(worker, seats[worker])

    def join(self, worker: int, seat: Seat) -> None:
        """Take in a worker: a new one, or another process in the place of a lost one."""
        self._sit(worker, seat)
        if self._shards is not None:
            self._shards.lead.joined(worker)
        self._order(self.loop.joined(worker))

    def lose(self, worker: int, step: int | None) -> None:
        """A worker is lost; another process will come, with its part of checkpoint `step`."""
        self._leave(worker)
        self._uncommitted = -1
        if self._shards is not None:
            self._shards.lead.lost(worker)
        with told(_WHO, f"taking back what worker {worker} had not kept"):
            orders = self.loop.lost(worker, step)
        self._order(orders)

    def suspend(self) -> None:
        """Let everything come to a rest, be kept, and end, for others to go on from there."""
        self._suspending = True
        self._order(self.loop.pause())

    def end(self) -> None:
        """End the run: what is under way is still applied, then a last certificate is made."""
        self._order(self.loop.stop(ASKED))

    # ------------------------------------------------------------------ run

    @property
    def finished(self) -> bool:
        """Whether the run is over or suspended, and everybody knows."""
        over = self.loop.state.final is not None and self._begun is None
        return over and not any(seat.replies for seat in self._seats.values())

    def advance(self, timeout_s: float = 0.0) -> bool:
        """Do what can be done, waiting up to `timeout_s` for the first message.

        Returns:
            Whether anything was done.

        Raises:
            StageError: the rule failed; the message tells at what.
        """
        if self._late:
            timeout_s = min(timeout_s, self._let_in())
        ready = self._bell.wait(timeout_s)
        moved = False
        for worker, seat in list(self._seats.items()):
            # What has no socket has rung, or is asked every time.
            if ("in", worker) in ready or not seat.polled:
                moved |= self._hear(worker, seat)
            if seat.waiting and worker in self._seats:
                moved |= seat.send(self.loop.state.trail, self._bell, worker)
        if self._shards is not None:
            moved |= self._hear_shards(self._shards, ready)
        self._keep()
        if self._shards is not None:
            self._shards.flush()
        return moved

    def totals(self) -> dict[str, int]:
        """Return how much there has been of what only grows, from whichever thread."""
        loop = self.loop
        return {
            "messages": loop.state.messages,
            "samples": loop.state.samples,
            "refused": loop.state.refused,
            "bytes": self._meter.carried(list(self._seats.values())),
        }

    def settle(self, timeout_s: float) -> None:
        """Wait until workers and shards have taken what was sent to them."""
        for seat in self._seats.values():
            # Who is gone has heard all that it will ever hear.
            with contextlib.suppress(LinkError):
                seat.outbox.settle(timeout_s)
        if self._shards is not None:
            self._shards.settle(timeout_s)

    # ------------------------------------------------------------------ inside

    def _let_in(self) -> float:
        """Let workers join for whom it is time; return the seconds until the next one."""
        now = time.perf_counter()
        for worker, (when, seat) in list(self._late.items()):
            if when <= now:
                del self._late[worker]
                self.join(worker, seat)
        return min((when - now for when, _ in self._late.values()), default=math.inf)

    def _sit(self, worker: int, seat: Seat) -> None:
        self._seats[worker] = seat
        self._bell.watch(("in", worker), seat.inbox.sockets)

    def _hear(self, worker: int, seat: Seat) -> bool:
        """Take one message: what is behind it keeps the poller awake."""
        try:
            message = seat.inbox.take(ahead=False)
            if message is None:
                seat.inbox.check()
                return False
            heard = seat.side.unpacked(message)
            if isinstance(heard, Push):
                # It answers the reply with its task.
                seat.outbox.answered()
                seat.waited_s = heard.waited_s
            if self._shards is None:
                self._take(worker, heard)
            else:
                self._shards.lead.heard(worker, heard)
        except LinkError as error:
            self._leave(worker)
            if self.loop.state.final is None:
                self.cut.append((worker, str(error)))
            return False
        return True

    def _hear_shards(self, shards: ShardLinks, ready: set[tuple[str, int]]) -> bool:
        """Take what has come whole, from workers to all shards."""
        moved = shards.hear(ready)
        while (found := shards.whole()) is not None:
            self._take(*found)
            moved = True
        return moved

    def _take(self, worker: int, heard: Push | Proof) -> None:
        if isinstance(heard, Push):
            with told(_WHO, "push {} of worker {}", heard.number, worker):
                orders = self.loop.arrived(worker, heard)
        else:
            with told(_WHO, "proof {} of worker {}", heard.number, worker):
                orders = self.loop.proved(worker, heard)
        self._order(orders)

    def _leave(self, worker: int) -> None:
        self._late.pop(worker, None)
        seat = self._seats.pop(worker, None)
        if seat is not None:
            for side in ("in", "out"):
                self._bell.leave((side, worker))
            self._meter.leaves(seat)
            seat.inbox.close()
            seat.outbox.close()

    def _order(self, orders: Sequence[Order]) -> None:
        for order in orders:
            seat = self._seats.get(order.worker)
            if seat is None:
                continue
            if isinstance(order.message, Reply):
                seat.news = None
                seat.replies.append(order.message)
            else:
                seat.news = order.message
            seat.send(self.loop.state.trail, self._bell, order.worker)
        if self.loop.state.rows:
            self._report()

    def _report(self) -> None:
        rows, self.loop.state.rows = self.loop.state.rows, []
        for row in rows:
            found = self._meter.row(row, self._seats.values(), self.loop)
            self._emit(found if self._shards is None else self._shards.in_row(found))

    def _keep(self) -> None:
        """Begin a checkpoint that is due, save the server's part of one that all know of."""
        loop = self.loop
        if self._begun is not None and not loop.saving:
            if loop.told == self._begun and self._save is not None:
                self._save(self._begun, self._part(self._begun))
                self._uncommitted = self._begun
            self._begun = None
            self._since = (loop.state.version, time.perf_counter())
        if self._suspending:
            if loop.idle and not self._away and not loop.state.ended_by:
                self._begin()
                # The last certificate goes to every worker, and with it the word to keep its state.
                self._order(loop.stop(SUSPENDED))
        elif self._may_begin():
            updates, then = self._since
            if self._plan.due(
                loop.state.version, loop.state.version - updates, time.perf_counter() - then
            ):
                self._begin()

    def _may_begin(self) -> bool:
        """Tell whether there is room for a checkpoint: a rule remembers two, of which one is to be
        whole, for the workers that may be lost before the other is.
        """
        unsettled = self._begun is not None or self._uncommitted > self.committed
        return not (unsettled or self.loop.state.ended_by or self._away)

    @property
    def _away(self) -> bool:
        """Whether a worker is lost and not replaced."""
        return len(self._seats) < len(self.loop.workers)

    def _begin(self) -> None:
        self._begun = self.loop.state.version
        self.loop.checkpoint(self.loop.state.version)

    def _part(self, step: int) -> dict[str, Any]:
        with told(_WHO, f"checkpoint {step}"):
            return {
                "step": step,
                "rule": dict(self.loop.rule.save()),
                "loop": self.loop.state.save(),
                "figures": self._meter.save(self._seats.values()),
            }
