"""The runner: instructions become calls of the rule, messages, reports and errors that tell."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import actors.errors
from actors.errors import MechanismError, StageError
from actors.pipeline.boxes import Boxes
from actors.pipeline.in_process import run_in_process
from actors.pipeline.program import StageProgram
from actors.pipeline.runner import StageRunner
from actors.units import Tensors, Unit
from actors.wires.frames import encode
from actors.wires.local_wire import local_wire
from actors.wires.mailbox import BoxStatistics, Inbox, Outbox
from actors.wires.messages import Kind, Message

pytestmark = pytest.mark.unit

DATA = [(torch.full((4, 3), float(n)), torch.full((4,), n)) for n in range(3)]


class FakeRule:
    """Adds one going up, takes one off coming down; `at` is called with the name of each call."""

    def __init__(self, at: Callable[[str], None] = lambda _: None) -> None:
        self.calls: list[str] = []
        self._at = at

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._at(call)

    def forward(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        self._note(f"forward {unit.batch}: {told(inputs)}, {told(labels)}")
        return tuple(t + 1 for t in inputs if t is not None)

    def backward(self, unit: Unit, gradients: Tensors) -> Tensors:
        self._note(f"backward {unit.batch}: {told(gradients)}")
        return (torch.tensor([float(unit.batch)]), None)

    def update(self) -> None:
        self._note("update")

    def evaluate(self, inputs: Tensors, labels: Tensors) -> Tensors:
        self._note(f"evaluate: {told(inputs)}, {told(labels)}")
        return tuple(t + 1 for t in inputs if t is not None)

    def report(self) -> Mapping[str, Any]:
        self._note("report")
        return {"calls": len(self.calls)}

    def state(self) -> Mapping[str, Tensor]:
        return {}

    def measure(self, inputs: Tensors, repeats: int) -> Sequence[tuple[float, float]]:
        return [(0.0, 0.0)] * repeats


def told(tensors: Tensors) -> list[float | None]:
    return [None if t is None else t.flatten()[0].item() for t in tensors]


def ddg(stages: int, **more: int) -> list[StageProgram]:
    return [
        StageProgram(stage=k, stages=stages, delay=stages - 1 - k, **more) for k in range(stages)
    ]


# ------------------------------------------------------------------ calls


def test_the_rules_get_what_the_stages_beside_them_sent():
    rules = [FakeRule(), FakeRule()]
    run_in_process(ddg(2), rules, DATA[:2], DATA[2:])
    assert rules[0].calls == [
        "forward 0: [0.0], []",
        "update",
        "forward 1: [1.0], []",
        "backward 0: [0.0, None]",
        "update",
        "backward 1: [1.0, None]",
        "update",
        "evaluate: [2.0], []",
        "report",
    ]
    assert rules[1].calls == [
        "forward 0: [1.0], [0]",
        "backward 0: []",
        "update",
        "forward 1: [2.0], [1]",
        "backward 1: []",
        "update",
        "evaluate: [3.0], [2]",
        "report",
    ]


def test_a_pipeline_of_one_stage_has_input_and_labels():
    rule = FakeRule()
    run_in_process(ddg(1), [rule], DATA[1:2])
    assert rule.calls == ["forward 0: [1.0], [1]", "backward 0: []", "update", "report"]


def test_nothing_is_computed_while_its_result_cannot_be_sent():
    sending, _ = local_wire()
    features = FakeBox([Message(Kind.BATCH, n, DATA[n][:1]) for n in range(2)])
    rule = FakeRule()
    runner = StageRunner(
        StageProgram(stage=0, stages=2, delay=4),
        rule,
        Boxes(features_in=features, features_out=Outbox("features", sending, 1)),
        lambda row: None,
    )
    while runner.advance():
        pass
    assert rule.calls == ["forward 0: [0.0], []", "update"]


def test_advance_tells_whether_anything_was_done():
    runner = StageRunner(
        ddg(1)[0],
        FakeRule(),
        Boxes(
            features_in=FakeBox([Message(Kind.BATCH, 0, DATA[0][:1])]),
            labels_in=Inbox("labels", local_wire()[1], 1),
        ),
        lambda row: None,
    )
    assert runner.advance()
    assert not runner.advance()


def test_run_ends_when_it_is_told_to_and_asks_with_the_stated_patience():
    features = FakeBox([])
    runner = StageRunner(ddg(1)[0], FakeRule(), Boxes(features_in=features), lambda row: None)
    answers = iter([False, False, True])
    runner.run(lambda: next(answers), patience_s=0.125)
    assert not runner.finished
    assert features.asked == [0.125, 0.125]


def test_a_stage_without_the_box_that_it_waits_for_says_so():
    features = FakeBox([Message(Kind.BATCH, 0, DATA[0][:1])])
    runner = StageRunner(ddg(1)[0], FakeRule(), Boxes(features_in=features), lambda row: None)
    runner.advance()
    with pytest.raises(MechanismError, match="stage 0 has no box for labels"):
        runner.advance()


def test_close_closes_every_box():
    closed = []

    class End:
        def __init__(self, name: str) -> None:
            self.close = lambda: closed.append(name)

    features = FakeBox([])
    features.close = lambda: closed.append("features_in")  # type: ignore[method-assign]
    boxes = Boxes(
        features_in=features,
        labels_in=Inbox("", End("labels_in"), 1),  # type: ignore[arg-type]
        gradients_in=Inbox("", End("gradients_in"), 1),  # type: ignore[arg-type]
        features_out=Outbox("", End("features_out"), 1),  # type: ignore[arg-type]
        gradients_out=Outbox("", End("gradients_out"), 1),  # type: ignore[arg-type]
    )
    StageRunner(ddg(1)[0], FakeRule(), boxes, lambda row: None).close()
    assert sorted(closed) == sorted(boxes.named()) == sorted(set(closed))
    assert len(closed) == 5


# ------------------------------------------------------------------ errors


def failing(call: str, error: BaseException) -> FakeRule:
    def at(now: str) -> None:
        if now.startswith(call):
            raise error

    return FakeRule(at)


def failure_of(rules: Sequence[FakeRule], **more: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        run_in_process(ddg(2), rules, DATA, DATA[:1], **more)
    return caught.value


def test_an_error_in_the_forward_tells_stage_batch_and_shapes():
    boom = ValueError("boom")
    error = failure_of([FakeRule(), failing("forward 2", boom)])
    assert str(error) == (
        "stage 1 failed in the forward of batch 2 with [((4, 3), 'torch.float32')]: "
        "ValueError: boom"
    )
    assert error.__cause__ is boom


def test_an_error_in_the_backward_tells_the_gradients_and_which_are_absent():
    error = failure_of([failing("backward 1", KeyError("w")), FakeRule()])
    assert str(error) == (
        "stage 0 failed in the backward of batch 1 with [((1,), 'torch.float32'), None]: "
        "KeyError: 'w'"
    )


def test_an_error_in_an_update_tells_the_window():
    updates = []

    def third(call: str) -> None:
        updates.extend([call] * (call == "update"))
        if len(updates) == 3:
            raise FloatingPointError("not finite")

    error = failure_of([FakeRule(third), FakeRule()])
    assert str(error) == "stage 0 failed in the update 2: FloatingPointError: not finite"


def test_an_error_in_a_test_tells_the_test_batch():
    error = failure_of([FakeRule(), failing("evaluate", RuntimeError("shape"))])
    assert str(error) == (
        "stage 1 failed in the evaluation of batch 0 with [((4, 3), 'torch.float32')]: "
        "RuntimeError: shape"
    )


def test_an_error_that_tells_its_own_story_passes_unchanged():
    class Told(Exception):  # noqa: N818
        tells_its_story = True

    told = Told("stage 1 diverged at batch 0")
    with pytest.raises(Told) as caught:
        run_in_process(ddg(2), [FakeRule(), failing("forward 0", told)], DATA)
    assert caught.value is told


def test_an_interrupt_is_no_error_of_the_stage():
    with pytest.raises(KeyboardInterrupt):
        run_in_process(ddg(2), [FakeRule(), failing("forward 0", KeyboardInterrupt())], DATA)


def test_a_stage_error_survives_pickling():
    error = failure_of([FakeRule(), failing("forward 2", ValueError("boom"))])
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is StageError
    assert str(copy) == str(error)


@pytest.mark.parametrize("name", actors.errors.__all__)
def test_every_error_of_the_mechanism_survives_pickling(name: str):
    error = getattr(actors.errors, name)("what happened")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is type(error)
    assert isinstance(copy, MechanismError)
    assert copy.args == ("what happened",)


# ------------------------------------------------------------------ reports


def test_a_report_counts_the_messages_and_bytes_since_the_one_before():
    _, rows = run_in_process(ddg(2), [FakeRule(), FakeRule()], DATA[:2], DATA[2:], epochs=2)
    below, above = ([row for row in rows if row["stage"] == k] for k in range(2))
    assert [(row["step"], row["epoch"]) for row in below] == [(2, 0), (4, 1)]
    assert [(row["step"], row["epoch"]) for row in above] == [(2, 0), (4, 1)]
    # Two batches and a test batch of 48 bytes. The report itself is passed on after it is made,
    # so the second period has the marker of the first; and the drain.
    assert [row["features_out_messages"] for row in below] == [3, 5]
    assert [row["features_out_bytes"] for row in below] == [144, 144]
    # Batch 1 is still on its way down at the end of the first epoch.
    assert [row["gradients_in_messages"] for row in below] == [1, 3]
    assert [row["gradients_in_bytes"] for row in below] == [4, 12]
    assert [row["in_flight"] for row in below] == [1, 0]
    # Labels are int64 of 4 samples.
    assert [row["labels_in_messages"] for row in above] == [3, 3]
    assert [row["labels_in_bytes"] for row in above] == [96, 96]
    assert all(1 <= row["features_in_peak_depth"] <= 2 for row in above)


def test_a_report_has_the_figures_of_the_rule():
    _, rows = run_in_process(ddg(1, report_every=2), [FakeRule()], DATA)
    assert [(row["step"], row["epoch"], row["calls"]) for row in rows] == [
        (2, None, 7),
        (3, 0, 11),
    ]


class Clock:
    """Goes on as the real one does, and by hours when it is told to."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.ahead_s

    def pass_hours(self, hours: float) -> None:
        self.ahead_s += 3600 * hours


class FakeBox:
    """A box of features that gives what it is made with, each after so many hours."""

    name = "fake"

    def __init__(
        self, messages: Sequence[Message], clock: Clock | None = None, hours: float = 0
    ) -> None:
        self.statistics = BoxStatistics()
        self.asked: list[float] = []
        self._messages = list(messages)
        self._clock = clock
        self._hours = hours

    def take(self, timeout_s: float = 0.0) -> Message | None:
        self.asked.append(timeout_s)
        if self._clock is not None:
            self._clock.pass_hours(self._hours)
        return self._messages.pop(0) if self._messages else None

    def ready(self, timeout_s: float = 0.0) -> bool:
        assert self._clock is not None
        self._clock.pass_hours(self._hours)
        return True

    def put(self, message: Message) -> None:
        self._messages.append(message)

    def close(self) -> None:
        self._messages.clear()


def features(*per_epoch: int, tests: int = 0) -> list[Message]:
    found, n, tested = [], 0, 0
    for epoch, count in enumerate(per_epoch):
        for _ in range(count):
            found.append(Message(Kind.BATCH, n, (torch.ones(1),)))
            n += 1
        if epoch == len(per_epoch) - 1:
            found.append(Message(Kind.DRAIN, n))
        for _ in range(tests):
            found.append(Message(Kind.EVALUATE, tested, (torch.ones(1),)))
            tested += 1
        found.append(Message(Kind.EPOCH, epoch))
    return [*found, Message(Kind.FINISH, n)]


def only(kind: Kind, messages: Sequence[Message]) -> list[Message]:
    return [message for message in messages if message.kind is kind]


def run_by_the_clock(
    monkeypatch: pytest.MonkeyPatch,
    program: StageProgram,
    make: Callable[[Clock], tuple[FakeRule, Boxes]],
) -> list[dict[str, Any]]:
    """Run one stage by a clock that its boxes and its rule put forward; give its rows."""
    clock = Clock()
    for module in ("pipeline.runner", "pipeline.stage_meter"):
        time = SimpleNamespace(perf_counter=clock.perf_counter)
        monkeypatch.setattr(f"actors.{module}.time", time)
    rows: list[dict[str, Any]] = []
    rule, boxes = make(clock)
    runner = StageRunner(program, rule, boxes, rows.append)
    runner.run(lambda: False)
    assert runner.finished
    return rows


def hours(rows: Sequence[dict[str, Any]], figure: str) -> list[int]:
    return [round(row[figure] / 3600) for row in rows]


def test_the_first_stage_is_blocked_by_gradients_and_credits_but_not_by_its_data(
    monkeypatch: pytest.MonkeyPatch,
):
    def make(clock: Clock) -> tuple[FakeRule, Boxes]:
        stream = features(1, 1)
        boxes: Any = {
            "features_in": FakeBox(stream, clock, hours=1000),
            "gradients_in": FakeBox(only(Kind.BATCH, stream), clock, hours=10),
            "features_out": FakeBox([], clock, hours=1),
        }
        return FakeRule(), Boxes(**boxes)

    program = StageProgram(stage=0, stages=2, delay=0)
    rows = run_by_the_clock(monkeypatch, program, make)
    # A credit for the forward, a gradient, a credit for the report; in the end one for the drain.
    assert hours(rows, "blocked_s") == [12, 13]
    assert hours(rows, "time_s") == [2012, 5025]


def test_the_last_stage_is_blocked_by_features_labels_and_credits(
    monkeypatch: pytest.MonkeyPatch,
):
    def make(clock: Clock) -> tuple[FakeRule, Boxes]:
        stream = features(1, 1)
        boxes: Any = {
            "features_in": FakeBox(stream, clock, hours=1000),
            "labels_in": FakeBox(only(Kind.BATCH, stream), clock, hours=10),
            "gradients_out": FakeBox([], clock, hours=1),
        }
        return FakeRule(), Boxes(**boxes)

    program = StageProgram(stage=1, stages=2, delay=0)
    rows = run_by_the_clock(monkeypatch, program, make)
    # Features and the marker, labels, a credit for the gradient; in the end also the drain.
    assert hours(rows, "blocked_s") == [2011, 3011]


def test_computing_is_not_being_blocked_and_testing_is_not_training(
    monkeypatch: pytest.MonkeyPatch,
):
    def make(clock: Clock) -> tuple[FakeRule, Boxes]:
        takes = {"forward": 1, "backward": 10, "update": 100, "evaluate": 1000}
        rule = FakeRule(lambda call: clock.pass_hours(takes.get(call.split()[0].strip(":"), 0)))
        stream = features(2, 1, tests=2)
        labels = only(Kind.BATCH, stream) + only(Kind.EVALUATE, stream)
        labels.sort(key=stream.index)
        boxes: Any = {"features_in": FakeBox(stream), "labels_in": FakeBox(labels)}
        return rule, Boxes(**boxes)

    program = StageProgram(stage=0, stages=1, delay=0)
    rows = run_by_the_clock(monkeypatch, program, make)
    assert hours(rows, "blocked_s") == [0, 0]
    assert hours(rows, "trained_s")[0] == 222
    assert hours(rows, "time_s") == [2222, 4333]


# ------------------------------------------------------------------ what is left


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("epochs", [1, 2])
def test_nothing_remains_of_a_run_that_ended(stages: int, epochs: int):
    rules = [FakeRule() for _ in range(stages)]
    runners, _ = run_in_process(ddg(stages), rules, DATA, DATA[:1], epochs=epochs)
    assert all(runner.finished for runner in runners)
    for runner in runners:
        assert runner.remains() == {}


def test_what_is_under_way_remains():
    sending, receiving = local_wire()
    runner = StageRunner(
        StageProgram(stage=0, stages=2, delay=1),
        FakeRule(),
        Boxes(
            features_in=FakeBox(features(3)),
            features_out=Outbox("features", sending, 3),
            gradients_in=Inbox("gradients", local_wire()[1], 3),
        ),
        lambda row: None,
    )
    while runner.advance():
        pass
    assert runner.remains() == {"in_flight": 2, "features_out": 2}
    assert receiving.receive(0) is not None
    receiving.grant(1)
    assert runner.remains() == {"in_flight": 2, "features_out": 1}


def test_features_that_wait_for_their_labels_remain():
    runner = StageRunner(
        ddg(1)[0],
        FakeRule(),
        Boxes(
            features_in=FakeBox(features(1)),
            labels_in=Inbox("labels", local_wire()[1], 1),
        ),
        lambda row: None,
    )
    while runner.advance():
        pass
    assert runner.remains() == {"payloads": 1}


def test_messages_that_came_ahead_of_their_turn_remain():
    sending, receiving = local_wire()
    gradients = Inbox("gradients", receiving, 3)
    for sequence in (1, 2):
        sending.send(encode(sequence, Message(Kind.BATCH, sequence)))
    assert gradients.take() is None
    boxes = Boxes(features_in=FakeBox([]), gradients_in=gradients)
    runner = StageRunner(ddg(2)[0], FakeRule(), boxes, lambda row: None)
    assert runner.remains() == {"gradients_in": 2}


@pytest.mark.parametrize("name", ["features_out", "gradients_out"])
def test_remains_gives_the_last_credits_their_time(name: str):
    asked = []

    class Slow(Outbox):
        def settle(self, timeout_s: float) -> None:
            asked.append(timeout_s)

    outgoing: Any = {name: Slow("slow", local_wire()[0], 1)}
    boxes = Boxes(features_in=FakeBox([]), **outgoing)
    runner = StageRunner(ddg(1)[0], FakeRule(), boxes, lambda row: None)
    assert runner.remains(0.75) == {}
    assert asked == [0.75]
