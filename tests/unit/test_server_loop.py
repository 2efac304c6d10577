"""The loop of a parameter server: events are fed by hand, orders compared with written-out ones.

Orders are spelled in short: "0 commit t3" tells worker 0 that its push was applied, and gives it
task 3; "discard", "none" are the other verdicts; "open" has a phase's opening, "cert2" asks for a
part of certificate 2, "back1" goes back to certificate 1, "save7" keeps the state for checkpoint 7,
"over" ends; "1 news v4" is a broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from actors.errors import MechanismError
from actors.server.ends import Ends
from actors.server.loop import ServerLoop
from actors.server.messages import News, Order, Proof, Push, Reply
from actors.server.protocols import Task
from actors.server.staleness import Bound
from actors.server.worker_loop import WorkerLoop

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Phase:
    number: int = 0
    kind: str = "steps"
    gather: bool = False
    messages: int | None = None
    pieces: int = 1


@dataclass
class Part:
    values: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)


class FakeRule:
    """Notes what is asked of it; goes through the phases that it is given."""

    def __init__(self, *phases: Phase) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.phases = list(phases) or [Phase()]
        self.at = 0
        self.figures: list[dict[str, float]] = []
        self.reasons: list[str | None] = []

    def phase(self) -> Phase:
        return self.phases[self.at]

    def opening(self):
        return (torch.tensor([float(self.at)]),)

    def answer(self, worker):
        return (torch.tensor([float(len(self.calls))]),)

    def apply(self, worker, message, staleness):
        self.calls.append(("apply", worker, staleness))

    def changed(self):
        return None

    def close_phase(self):
        self.calls.append(("close",))
        self.at += 1

    def certify(self, parts, answer):
        self.calls.append(("certify", tuple(sorted(parts))))
        return self.figures.pop(0) if self.figures else {"gap": 1.0}

    def judge(self, figures):
        return self.reasons.pop(0) if self.reasons else None

    def mark(self, worker, number):
        self.calls.append(("mark", worker, number))

    def rewind(self, number):
        self.calls.append(("rewind", number))

    def kept(self, worker, step):
        self.calls.append(("kept", worker, step))

    def take_back(self, worker, step):
        self.calls.append(("take_back", worker, step))

    def weights(self, answer):
        return {}

    def report(self):
        return {}

    def save(self):
        return {}

    def restore(self, saved):
        pass

    def applied(self):
        return [call[1:] for call in self.calls if call[0] == "apply"]


class Case:
    """A loop, and the newest reply that each worker has."""

    def __init__(self, workers=2, rule=None, bound=None, ends=None, broadcast=0, expect=False):
        self.rule = rule or FakeRule()
        self.loop = ServerLoop(self.rule, bound or Bound(), ends or Ends(), broadcast)
        self.replies: dict[int, Reply] = {}
        if expect:
            self.loop.expect(range(workers))
        for worker in range(workers):
            self.spell(self.loop.joined(worker))

    def spell(self, orders: list[Order]) -> list[str]:
        return [self.spell_one(order) for order in orders]

    def spell_one(self, order: Order) -> str:
        message = order.message
        if isinstance(message, News):
            return f"{order.worker} news v{message.version}"
        self.replies[order.worker] = message
        words = [str(order.worker), message.verdict]
        if message.rewind:
            words.append(f"back{message.good}")
        if message.save is not None:
            words.append(f"save{message.save}")
        if message.certify is not None:
            words.append(f"cert{message.certify[0]}")
        if message.opening is not None:
            words.append("open")
        if message.task is not None:
            words.append(f"t{message.task.number}")
        if message.over:
            words.append("over")
        return " ".join(words)

    def push_of(self, worker: int, samples: int = 10) -> Push:
        reply = self.replies[worker]
        assert reply.task is not None
        return Push(
            era=reply.era,
            phase=reply.task.phase.number,
            number=reply.task.number,
            tensors=(),
            samples=samples,
        )

    def push(self, worker: int) -> list[str]:
        return self.spell(self.loop.arrived(worker, self.push_of(worker)))

    def prove(self, worker: int, number: int) -> list[str]:
        return self.spell(self.loop.proved(worker, Proof(number=number, certificate=Part())))


# ------------------------------------------------------------------ one message after the other


def test_a_worker_that_joins_gets_the_opening_and_a_task():
    case = Case(workers=0)
    assert case.spell(case.loop.joined(0)) == ["0 none open t0"]
    assert case.loop.workers == [0]


def test_a_push_is_applied_with_its_staleness_and_answered_with_the_next_task():
    case = Case(workers=3)
    assert case.push(1) == ["1 commit t1"]
    assert case.push(1) == ["1 commit t2"]
    assert case.push(0) == ["0 commit t1"]
    assert case.rule.applied() == [(1, 0), (1, 0), (0, 2)]
    assert (case.loop.state.version, case.loop.state.messages, case.loop.state.samples) == (
        3,
        3,
        30,
    )


def test_a_repeat_is_forgotten_and_a_message_from_the_future_is_an_error():
    case = Case()
    push = case.push_of(0)
    case.push(0)
    assert case.loop.arrived(0, push) == []
    assert case.loop.state.repeats == 1
    assert case.rule.applied() == [(0, 0)]
    with pytest.raises(MechanismError, match="sent message 5, but 1 was expected"):
        case.loop.arrived(0, Push(era=0, phase=0, number=5, tensors=(), samples=0))


def test_a_repeat_of_a_message_that_waits_is_forgotten_too():
    case = Case(bound=Bound(updates=1))
    case.push(0)
    held = case.push_of(0)
    assert case.spell(case.loop.arrived(0, held)) == []
    assert case.loop.arrived(0, held) == []
    assert case.loop.state.repeats == 1


def test_w_is_broadcast_to_the_others_that_compute():
    case = Case(workers=3, broadcast=2)
    assert case.push(0) == ["0 commit t1"]
    assert case.push(0) == ["0 commit t2", "1 news v2", "2 news v2"]


# ------------------------------------------------------------------ staleness


def test_a_message_waits_while_it_would_make_a_slower_one_too_stale():
    case = Case(workers=2, bound=Bound(updates=2))
    assert case.push(0) == ["0 commit t1"]
    assert case.push(0) == ["0 commit t2"]
    assert case.push(0) == []
    assert case.push(1) == ["1 commit t1", "0 commit t3"]
    assert case.rule.applied() == [(0, 0), (0, 0), (1, 2), (0, 1)]


def test_a_message_that_is_too_stale_is_refused_and_computed_anew():
    case = Case(workers=2, bound=Bound(updates=1, late="refresh"))
    case.push(0)
    case.push(0)
    old = case.push_of(1)
    assert case.push(1) == ["1 discard t1"]
    assert case.loop.state.refused == 1
    assert case.loop.arrived(1, old) == []
    assert case.push(1) == ["1 commit t2"]
    assert case.rule.applied()[-1] == (1, 0)


# ------------------------------------------------------------------ phases and rounds


def test_a_round_waits_for_all_and_applies_them_in_their_order():
    case = Case(workers=3, rule=FakeRule(Phase(gather=True)))
    assert case.push(2) == []
    assert case.push(0) == []
    assert case.push(1) == ["0 commit t1", "1 commit t1", "2 commit t1"]
    assert case.rule.applied() == [(0, 0), (1, 0), (2, 0)]
    assert case.loop.state.version == 1


def test_a_round_waits_for_workers_that_are_expected():
    case = Case(workers=0, rule=FakeRule(Phase(gather=True)))
    case.loop.expect(range(2))
    case.spell(case.loop.joined(0))
    assert case.push(0) == []
    case.spell(case.loop.joined(1))
    assert case.push(1) == ["0 commit t1", "1 commit t1"]


def test_a_phase_ends_and_messages_of_it_that_come_later_are_discarded():
    full = Phase(number=1, kind="full", gather=True, messages=1)
    rule = FakeRule(Phase(messages=1), full, Phase(number=2))
    case = Case(workers=2, rule=rule)
    assert case.push(0) == ["0 commit open t1"]
    assert case.push(0) == []
    assert case.push(1) == ["1 discard open t1"]
    assert case.push(1) == ["0 commit open t2", "1 commit open t2"]
    assert [call for call in rule.calls if call[0] in ("apply", "close")] == [
        ("apply", 0, 0), ("close",), ("apply", 0, 0), ("apply", 1, 0), ("close",),
    ]  # fmt: skip


def test_a_message_that_waits_while_its_phase_ends_is_not_taken_for_one_of_the_next():
    rule = FakeRule(Phase(messages=3), Phase(number=1, kind="full", gather=True))
    case = Case(workers=2, rule=rule, bound=Bound(updates=2))
    case.push(0)
    case.push(0)
    assert case.push(0) == []
    assert case.push(1) == ["1 commit open t1", "0 discard open t3"]
    assert rule.applied() == [(0, 0), (0, 0), (1, 2)]


# ------------------------------------------------------------------ certificates and rewinds


def test_a_certificate_is_of_one_w_and_goes_round_with_the_replies():
    case = Case(workers=2, ends=Ends(certify_samples=20))
    assert case.push(0) == ["0 commit t1"]
    assert case.push(0) == ["0 commit cert1 t2"]
    assert case.push(1) == ["1 commit cert1 t1"]
    first, second = case.replies[0].certify, case.replies[1].certify
    assert first[1] is second[1]
    assert case.prove(1, 1) == []
    assert case.prove(0, 1) == []
    assert case.loop.state.rows[0]["gap"] == 1.0
    assert case.loop.state.rows[0]["staleness_counts"] == [2, 0, 1]


def test_the_beginning_is_certified_where_workers_are_expected():
    case = Case(workers=2, expect=True)
    assert case.replies[0].certify[0] == 1
    case.prove(0, 1)
    case.prove(1, 1)
    assert case.loop.state.rows[0]["step"] == 0


def test_a_rise_goes_back_to_the_last_good_certificate_and_what_is_under_way_is_lost():
    case = Case(workers=2, expect=True, ends=Ends(certify_samples=10))
    case.rule.reasons = [None, "rose"]
    case.prove(0, 1)
    case.prove(1, 1)
    assert case.push(0) == ["0 commit cert2 t1"]
    case.prove(0, 2)
    assert case.push(1) == ["1 commit cert2 t1"]
    assert case.prove(1, 2) == []
    assert ("rewind", 1) in case.rule.calls
    assert case.loop.state.rows[-1]["rewound"] == "rose"
    assert case.push(0) == ["0 discard back1 t2"]
    assert case.push(1) == ["1 discard back1 t2"]
    assert case.push(0) == ["0 commit cert3 t3"]
    assert case.rule.applied() == [(0, 0), (1, 1), (0, 0)]


def test_a_rewind_while_a_worker_is_lost_leaves_it_what_its_next_process_begins_with():
    case = Case(workers=2, expect=True, ends=Ends(certify_samples=10))
    case.rule.reasons = [None, "rose"]
    case.loop.checkpoint(7)
    case.prove(0, 1)
    case.prove(1, 1)
    assert case.push(0) == ["0 commit save7 cert2 t1"]
    assert case.push(1) == ["1 commit save7 cert2 t1"]
    assert case.loop.told == 7
    case.prove(1, 2)
    case.spell(case.loop.lost(1, 7))
    case.prove(0, 2)
    assert case.rule.calls[-2:] == [("rewind", 1), ("take_back", 1, 7)]
    assert case.spell(case.loop.joined(1)) == ["1 none open t2"]


# ------------------------------------------------------------------ losses


def test_what_a_lost_worker_has_applied_is_taken_back_and_its_late_push_is_a_repeat():
    case = Case(workers=2)
    case.push(0)
    zombie = case.push_of(0)
    assert case.spell(case.loop.lost(0, None)) == []
    assert ("take_back", 0, None) in case.rule.calls
    assert case.loop.arrived(0, zombie) == []
    assert case.push(1) == ["1 commit t1"]
    assert case.spell(case.loop.joined(0)) == ["0 none open t2"]
    assert case.loop.arrived(0, zombie) == []
    assert case.rule.applied() == [(0, 0), (1, 1)]


def test_the_loss_of_the_slowest_lets_the_others_go_on():
    case = Case(workers=2, bound=Bound(updates=1))
    case.push(0)
    assert case.push(0) == []
    assert case.spell(case.loop.lost(1)) == ["0 commit t2"]


def test_a_checkpoint_that_a_lost_worker_was_to_be_part_of_is_given_up():
    case = Case(workers=2)
    case.loop.checkpoint(3)
    assert case.push(0) == ["0 commit save3 t1"]
    assert case.loop.saving
    case.spell(case.loop.lost(1))
    assert (case.loop.saving, case.loop.told) == (False, None)
    assert case.spell(case.loop.joined(1)) == ["1 none open t1"]


def test_a_certificate_waits_for_the_process_in_place_of_a_lost_one():
    case = Case(workers=2, ends=Ends(certify_samples=10))
    assert case.push(0) == ["0 commit cert1 t1"]
    case.prove(0, 1)
    case.spell(case.loop.lost(1))
    assert case.loop.state.rows == []
    assert case.spell(case.loop.joined(1)) == ["1 none cert1 open t1"]
    case.prove(1, 1)
    assert len(case.loop.state.rows) == 1


# ------------------------------------------------------------------ the end


def test_a_run_ends_by_messages_and_with_a_certificate_of_its_end():
    case = Case(workers=2, ends=Ends(messages=2))
    assert case.push(0) == ["0 commit t1"]
    assert case.push(0) == ["0 commit"]
    assert case.push(1) == ["1 commit", "0 none cert1", "1 none cert1"]
    assert case.prove(0, 1) == []
    assert case.prove(1, 1) == ["0 none over", "1 none over"]
    assert case.loop.state.ended_by == "messages"
    assert case.loop.state.final is not None


def test_a_run_ends_at_its_tolerance_with_the_w_that_was_certified():
    case = Case(workers=1, ends=Ends(tolerance=0.5, figure="gap", certify_samples=10))
    case.rule.figures = [{"gap": 0.4}]
    case.push(0)
    certified = case.replies[0].certify[1]
    assert case.prove(0, 1) == []
    assert case.push(0) == ["0 commit", "0 none over"]
    assert case.loop.state.ended_by == "tolerance"
    assert case.loop.state.final is certified


def test_no_figure_is_good_enough_for_a_tolerance_of_zero():
    case = Case(workers=1, ends=Ends(figure="gap", certify_samples=10))
    case.rule.figures = [{"gap": -1e-17}]
    case.push(0)
    case.prove(0, 1)
    assert case.loop.state.ended_by == ""


def test_a_certificate_that_comes_while_others_compute_does_not_end_the_run():
    case = Case(workers=2, ends=Ends(messages=3, certify_samples=10))
    assert case.push(0) == ["0 commit cert1 t1"]
    assert case.push(1) == ["1 commit cert1 t1"]
    assert case.push(0) == ["0 commit"]
    case.prove(0, 1)
    assert case.prove(1, 1) == []
    assert case.push(1) == ["1 commit", "0 none cert2", "1 none cert2"]
    case.prove(0, 2)
    assert case.prove(1, 2) == ["0 none over", "1 none over"]


def test_a_round_that_cannot_become_whole_any_more_does_not_keep_a_run_from_ending():
    rule = FakeRule(Phase(messages=1), Phase(number=1, kind="full", gather=True))
    case = Case(workers=2, rule=rule)
    case.push(0)
    assert case.push(0) == []
    assert case.spell(case.loop.stop("asked to")) == []
    assert case.push(1) == ["1 discard", "0 discard", "0 none cert1", "1 none cert1"]


def test_a_discarded_last_message_ends_the_run_too():
    rule = FakeRule(Phase(messages=1), Phase(number=1))
    case = Case(workers=2, rule=rule, ends=Ends(messages=1))
    assert case.push(0) == ["0 commit"]
    assert case.push(1) == ["1 discard", "0 none cert1", "1 none cert1"]


def test_workers_are_added_and_removed_in_a_pause_and_numbers_go_on():
    case = Case(workers=2)
    case.push(0)
    assert case.spell(case.loop.pause()) == []
    assert case.push(0) == ["0 commit"]
    with pytest.raises(MechanismError, match="only while nothing is under way"):
        case.loop.resume([0, 1, 2])
    assert case.push(1) == ["1 commit"]
    assert case.loop.idle
    assert case.spell(case.loop.resume([0, 2])) == ["0 none open t2", "2 none open t0"]
    case.push(0)
    case.spell(case.loop.pause())
    case.push(0)
    case.push(2)
    assert case.spell(case.loop.resume([0, 1, 2]))[1] == "1 none open t1"


def test_a_loop_goes_on_where_a_saved_one_stood():
    case = Case(workers=2, ends=Ends(certify_samples=30))
    case.push(0)
    case.push(1)
    again = Case(workers=0, ends=Ends(certify_samples=30))
    again.loop.state.restore(case.loop.state.save())
    assert again.spell(again.loop.joined(0)) == ["0 none open t1"]
    assert again.spell(again.loop.joined(1)) == ["1 none open t1"]
    assert again.push(1) == ["1 commit cert1 t2"]
    assert (again.loop.state.version, again.loop.state.messages, again.loop.state.samples) == (
        3,
        3,
        30,
    )


# ------------------------------------------------------------------ the worker's side


class FakeWorkerRule:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def note(*args):
            self.calls.append((name, *args))
            return {"message": (), "samples": 4, "save": {}, "certify": Part()}.get(name)

        return note

    def names(self):
        return [call[0] for call in self.calls]


def reply(**changes):
    fields = {
        "verdict": "none", "rewind": False, "good": None, "save": None, "certify": None,
        "era": 0, "opening": None, "task": None, "answer": (),
    }  # fmt: skip
    return Reply(**(fields | changes))


def task(pieces=1, version=0):
    return Task(phase=Phase(pieces=pieces), number=0, version=version)


def test_a_worker_does_what_a_reply_says_in_its_order():
    kept = []
    worker = WorkerLoop(FakeWorkerRule(), lambda step, state: kept.append(step))
    proof = worker.replied(
        reply(
            verdict="discard",
            rewind=True,
            good=3,
            save=9,
            certify=(4, (), 0),
            opening=(),
            task=task(),
        )
    )
    assert worker.rule.names() == ["discard", "rewind", "save", "mark", "certify", "begin"]
    assert worker.rule.calls[1] == ("rewind", 3)
    assert kept == [9]
    assert proof is not None
    assert proof.number == 4
    push = worker.compute()
    assert (push.number, push.samples, push.phase) == (0, 4, 0)
    assert worker.rule.names()[6:] == ["work", "message", "samples"]


def test_pieces_use_the_newest_w_that_has_come_and_an_old_one_never():
    worker = WorkerLoop(FakeWorkerRule())
    old, first, new = ((torch.tensor([float(i)]),) for i in range(3))
    worker.replied(reply(task=task(pieces=3, version=5), answer=first))
    worker.heard(News(era=0, version=4, answer=old))
    assert worker.compute() is None
    worker.heard(News(era=0, version=9, answer=new))
    worker.heard(News(era=0, version=7, answer=old))
    worker.heard(News(era=1, version=11, answer=old))
    worker.compute()
    assert worker.compute() is not None
    assert [call[2] for call in worker.rule.calls if call[0] == "work"] == [first, new, new]


def test_a_reply_while_a_message_is_computed_and_a_computation_without_a_task_are_errors():
    worker = WorkerLoop(FakeWorkerRule())
    with pytest.raises(MechanismError, match="must have a task"):
        worker.compute()
    worker.replied(reply(task=task()))
    with pytest.raises(MechanismError, match="while its push was still being computed"):
        worker.replied(reply(task=task()))
