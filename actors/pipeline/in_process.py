"""K stages in one thread of one process, taking turns: no Ray, no sockets.

The loops, rules and boxes are those of a real run, only the wire is local, so what it computes is
what the actors compute. A generator may deliver messages late and out of order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from actors.checkpoint_plan import CheckpointPlan
from actors.errors import MechanismError
from actors.pipeline.boxes import Boxes
from actors.pipeline.program import StageProgram
from actors.pipeline.protocols import StageRule
from actors.pipeline.runner import StageRunner
from actors.pipeline.source import LossShares, Source
from actors.pipeline.wiring import links
from actors.wires.link import Link
from actors.wires.local_wire import LocalReceiveEnd, LocalSendEnd, local_wire
from actors.wires.mailbox import Inbox, Outbox

__all__ = ["run_in_process"]


def run_in_process(
    programs: Sequence[StageProgram],
    rules: Sequence[StageRule],
    train: Iterable[Any],
    test: Iterable[Any] | None = None,
    *,
    epochs: int = 1,
    parts: int = 1,
    loss_shares: LossShares | None = None,
    recheck_every: int = 0,
    recheck_ages: Sequence[int] = (),
    shuffle: random.Random | None = None,
    checkpoints: CheckpointPlan | None = None,
    save: Callable[[int, dict[str, Any]], None] | None = None,
    parts_saved: Sequence[Mapping[str, Any]] | None = None,
    emit: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[list[StageRunner], list[dict[str, Any]]]:
    """Run a whole pipeline in this thread.

    Args:
        programs: of all stages, in order.
        rules: of all stages, in order.
        train: re-iterable of (x, y).
        test: re-iterable of (x, y), or None.
        epochs: how often to go through `train`.
        parts: micro-batches per batch.
        loss_shares: of their losses in the batch's, see `Source`.
        recheck_every: batches between two groups of rechecks, see `Source`.
        recheck_ages: of the batches of a group.
        shuffle: makes deliveries late and out of order and the stages' turns random.
        checkpoints: when to save.
        save: takes the parts of checkpoints.
        parts_saved: of one checkpoint, by stage: where to go on from.
        emit: takes the rows as they come.

    Returns:
        The runners, finished, and the rows that they reported.

    Raises:
        MechanismError: no stage can go on although the run has not ended.
    """
    ends: dict[tuple[str, int, int], tuple[LocalSendEnd, LocalReceiveEnd, Link]] = {
        (link.box, link.source, link.target): (*local_wire(shuffle), link)
        for link in links(programs, window_units=programs[0].accumulate * parts)
    }

    def outbox(box: str, source: int, target: int) -> Outbox | None:
        found = ends.get((box, source, target))
        return None if found is None else Outbox(found[2].name, found[0], found[2].capacity)

    def inbox(box: str, source: int, target: int) -> Inbox | None:
        found = ends.get((box, source, target))
        return None if found is None else Inbox(found[2].name, found[1], found[2].capacity)

    rows: list[dict[str, Any]] = []
    runners = []
    last = len(programs) - 1
    *local_labels, labels = [box for k in range(last + 1) if (box := outbox("labels", 0, k))]
    source = Source(
        train,
        test,
        epochs=epochs,
        parts=parts,
        loss_shares=loss_shares,
        labels=labels,
        local_labels=local_labels,
        recheck_every=recheck_every,
        recheck_ages=recheck_ages,
        checkpoints=checkpoints,
        start=None if parts_saved is None else parts_saved[0]["source"],
    )
    for k, (program, rule) in enumerate(zip(programs, rules, strict=True)):
        boxes = Boxes(
            features_in=source if k == 0 else inbox("features", k - 1, k) or source,
            labels_in=inbox("labels", 0, k),
            gradients_in=inbox("gradients", k + 1, k),
            features_out=outbox("features", k, k + 1),
            gradients_out=outbox("gradients", k, k - 1),
        )
        part = None if parts_saved is None else parts_saved[k]
        runners.append(StageRunner(program, rule, boxes, emit or rows.append, save, part))
    _take_turns(runners, shuffle)
    return runners, rows


def _take_turns(runners: Sequence[StageRunner], shuffle: random.Random | None) -> None:
    # A shuffled wire may hold everything back in one round, but not in a hundred.
    patience = 1 if shuffle is None else 100
    still = 0
    order = list(runners)
    while not all(runner.finished for runner in runners):
        if shuffle is not None:
            shuffle.shuffle(order)
        moved = [runner.advance() for runner in order if not runner.finished]
        still = 0 if any(moved) else still + 1
        if still >= patience:
            waits = [f"stage {r.loop.program.stage} for {r.loop.awaits}" for r in runners]
            raise MechanismError(f"no stage can go on: {', '.join(waits)}")
