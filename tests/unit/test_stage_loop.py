"""The loop of a stage: messages are fed by hand, the instructions compared with written-out ones.

Instructions are spelled in short: F3 and B3 are forward and backward of batch 3, F3.1 of its
second micro-batch, U0 closes window 0, E0 tests batch 0, R4 reports within an epoch and R4e0 at
the end of epoch 0, v2 and ^2 pass the token of tick 2 below and above. C3 corrects batch 3, K3 and
G3 recheck it up and down, G3! if its gradient is the next to be applied.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Iterable, Sequence

import pytest

from actors.errors import MailboxError
from actors.pipeline.program import (
    Backward,
    Box,
    Compare,
    Correct,
    Evaluate,
    Feedback,
    Finish,
    Forward,
    Instruction,
    PassToken,
    Recheck,
    Report,
    StageProgram,
    StartDrain,
    Update,
)
from actors.pipeline.stage import StageLoop
from actors.units import Unit
from actors.wires.messages import Kind, Message

pytestmark = pytest.mark.unit


def spell(instruction: Instruction) -> str:
    match instruction:
        case Forward(unit):
            return "F" + spell_unit(unit)
        case Backward(unit):
            return "B" + spell_unit(unit)
        case Correct(unit):
            return "C" + spell_unit(unit)
        case Recheck(unit):
            return f"K{unit.batch}"
        case Compare(unit, due):
            return f"G{unit.batch}" + "!" * due
        case Update(window):
            return f"U{window}"
        case Evaluate(index):
            return f"E{index}"
        case StartDrain():
            return "drain"
        case Report(step, None):
            return f"R{step}"
        case Report(step, epoch):
            return f"R{step}e{epoch}"
        case PassToken(tick, "below"):
            return f"v{tick}"
        case PassToken(tick, _):
            return f"^{tick}"
        case Finish():
            return "end"
    raise AssertionError(instruction)


def spell_unit(unit: Unit) -> str:
    return str(unit.batch) if unit.parts == 1 else f"{unit.batch}.{unit.part}"


def spell_all(instructions: Iterable[Instruction]) -> str:
    return " ".join(spell(instruction) for instruction in instructions)


def batch(n: int, part: int = 0, parts: int = 1) -> Message:
    return Message(Kind.BATCH, n, (), part, parts, 1 / parts)


def evaluate(n: int) -> Message:
    return Message(Kind.EVALUATE, n)


def token(tick: int) -> Message:
    return Message(Kind.TOKEN, tick)


def stream(epochs: Sequence[int], *, tests: int = 0, parts: int = 1) -> list[Message]:
    """The features of a run: epochs of so many batches, each followed by `tests` test batches."""
    messages = []
    n = tested = 0
    for epoch, size in enumerate(epochs):
        for _ in range(size):
            messages += [batch(n, part, parts) for part in range(parts)]
            n += 1
        if epoch == len(epochs) - 1:
            messages.append(Message(Kind.DRAIN, n))
        for _ in range(tests):
            messages.append(evaluate(tested))
            tested += 1
        messages.append(Message(Kind.EPOCH, epoch))
    return [*messages, Message(Kind.FINISH, n)]


def run_alone(program: StageProgram, features: Iterable[Message]) -> list[Instruction]:
    """Give the stage what it awaits, and nothing else, until it awaits nothing.

    Gradients come in the order of the forwards, labels in the order of the features.
    """
    loop = StageLoop(program)
    boxes: dict[str, deque[Message]] = {"features": deque(features), "gradients": deque()}
    boxes["labels"] = deque(
        m for m in boxes["features"] if program.last and m.kind in (Kind.BATCH, Kind.EVALUATE)
    )
    done = loop.start()
    while loop.awaits is not None:
        released = loop.arrived(loop.awaits, boxes[loop.awaits].popleft())
        done += released
        if not program.last:
            boxes["gradients"] += [batch(i.unit.batch, i.unit.part) for i in released if is_f(i)]
    assert not any(boxes.values()), "the stage ended without taking everything"
    return done


def is_f(instruction: Instruction) -> bool:
    return isinstance(instruction, Forward)


def ddg(k: int, stages: int = 3, **more: int) -> StageProgram:
    return StageProgram(stage=k, stages=stages, delay=stages - 1 - k, **more)


def delayed(delay: int, **more: int) -> StageProgram:
    """The first of two stages, with any delay."""
    return StageProgram(stage=0, stages=2, delay=delay, **more)


# ------------------------------------------------------------------ the order of one stage


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (0, "F0 U0 F1 U1 F2 B0 U2 F3 B1 U3 drain B2 U4 B3 U5 R4e0 end"),
        (1, "F0 U0 F1 B0 U1 F2 B1 U2 F3 B2 U3 drain B3 U4 R4e0 end"),
        (2, "F0 B0 U0 F1 B1 U1 F2 B2 U2 F3 B3 U3 drain R4e0 end"),
    ],
)
def test_stage_k_of_ddg_is_k_forwards_ahead_of_its_backwards(k: int, expected: str):
    assert spell_all(run_alone(ddg(k), stream([4]))) == expected


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (
            0,
            "F0 U0 F1 U1 F2 U2 F3 U3 F4 B0 U4 F5 B1 U5 drain B2 U6 B3 U7 B4 U8 B5 U9 R6e0 end",
        ),
        (1, "F0 U0 F1 U1 F2 B0 U2 F3 B1 U3 F4 B2 U4 F5 B3 U5 drain B4 U6 B5 U7 R6e0 end"),
        (2, "F0 B0 U0 F1 B1 U1 F2 B2 U2 F3 B3 U3 F4 B4 U4 F5 B5 U5 drain R6e0 end"),
    ],
)
def test_stage_k_of_adl_is_twice_as_far_ahead(k: int, expected: str):
    program = StageProgram(stage=k, stages=3, delay=2 * (2 - k))
    assert spell_all(run_alone(program, stream([6]))) == expected


@pytest.mark.parametrize("k", [0, 1])
def test_back_propagation_alternates_forward_and_backward_at_every_stage(k: int):
    program = StageProgram(stage=k, stages=2, delay=0)
    expected = "F0 B0 U0 F1 B1 U1 F2 B2 U2 drain R3e0 end"
    assert spell_all(run_alone(program, stream([3]))) == expected


@pytest.mark.parametrize("k", [0, 1])
def test_gpipe_runs_all_forwards_and_then_all_backwards_of_a_batch_in_the_same_order(k: int):
    program = StageProgram(stage=k, stages=2, delay=None, flush=True)
    assert spell_all(run_alone(program, stream([2], parts=3))) == (
        "F0.0 F0.1 F0.2 B0.0 B0.1 B0.2 U0 F1.0 F1.1 F1.2 B1.0 B1.1 B1.2 U1 drain R2e0 end"
    )


def test_gpipe_closes_a_window_of_two_batches_and_a_partial_one_in_the_drain():
    program = StageProgram(stage=0, stages=2, delay=None, flush=True, accumulate=2)
    assert spell_all(run_alone(program, stream([3], parts=2))) == (
        "F0.0 F0.1 F1.0 F1.1 B0.0 B0.1 B1.0 B1.1 U0 F2.0 F2.1 drain B2.0 B2.1 U1 R3e0 end"
    )


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (0, "F0.0 F0.1 F0.2 B0.0 F0.3 B0.1 B0.2 B0.3 U0 drain R1e0 end"),
        (1, "F0.0 F0.1 B0.0 F0.2 B0.1 F0.3 B0.2 B0.3 U0 drain R1e0 end"),
        (2, "F0.0 B0.0 F0.1 B0.1 F0.2 B0.2 F0.3 B0.3 U0 drain R1e0 end"),
    ],
)
def test_1f1b_warms_up_with_k_forwards_and_then_alternates(k: int, expected: str):
    program = StageProgram(stage=k, stages=3, delay=2 - k, flush=True)
    assert spell_all(run_alone(program, stream([1], parts=4))) == expected


def test_1f1b_empties_the_pipeline_between_windows():
    program = StageProgram(stage=0, stages=3, delay=2, flush=True)
    assert spell_all(run_alone(program, stream([2], parts=2))) == (
        "F0.0 F0.1 B0.0 B0.1 U0 F1.0 F1.1 B1.0 B1.1 U1 drain R2e0 end"
    )


def test_the_drain_counts_the_turns_of_batches_with_a_negative_index():
    assert spell_all(run_alone(delayed(4), stream([1]))) == ("F0 U0 drain U1 U2 U3 B0 U4 R1e0 end")


def test_windows_are_counted_on_through_the_drain_and_the_partial_one_is_closed():
    assert spell_all(run_alone(delayed(2, accumulate=2), stream([3]))) == (
        "F0 F1 U0 F2 B0 drain B1 U1 B2 U2 R3e0 end"
    )


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
@pytest.mark.parametrize("delay", [0, 1, 3, 6])
def test_every_batch_is_applied_once_in_the_stated_number_of_windows(
    delay: int, accumulate: int, flush: bool
):
    for n in (1, 2, 4, 7):
        program = delayed(delay, accumulate=accumulate, flush=flush)
        done = run_alone(program, stream([n]))
        assert [i.unit.batch for i in done if is_f(i)] == list(range(n))
        assert [i.unit.batch for i in done if isinstance(i, Backward)] == list(range(n))
        windows = math.ceil((n if flush else n + delay) / accumulate)
        assert [i.window for i in done if isinstance(i, Update)] == list(range(windows))


@pytest.mark.parametrize("accumulate", [2, 3])
def test_with_flush_no_update_falls_between_a_forward_and_its_backward(accumulate: int):
    program = delayed(2, accumulate=accumulate, flush=True)
    in_flight = 0
    for instruction in run_alone(program, stream([4, 3], parts=2)):
        in_flight += isinstance(instruction, Forward) - isinstance(instruction, Backward)
        if isinstance(instruction, Update):
            assert in_flight == 0


@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_at_most_one_unit_more_than_the_delay_is_in_flight(delay: int):
    program, n = delayed(delay), 8
    in_flight = peak = 0
    for instruction in run_alone(program, stream([n])):
        in_flight += isinstance(instruction, Forward) - isinstance(instruction, Backward)
        peak = max(peak, in_flight)
    assert (in_flight, peak) == (0, delay + 1)


@pytest.mark.parametrize("delay", [0, 2])
def test_a_stage_whose_gradients_do_not_come_stops_after_one_forward_more_than_the_delay(
    delay: int,
):
    loop = StageLoop(delayed(delay))
    released = [i for message in stream([8]) for i in loop.arrived("features", message)]
    assert [i.unit.batch for i in released if is_f(i)] == list(range(delay + 1))
    assert not any(isinstance(i, Backward) for i in released)
    assert loop.in_flight == delay + 1
    assert loop.awaits == "gradients"


# ------------------------------------------------------------------ gradients of one's own


def local(feedback: Feedback, *, late: int = 1, stage: int = 0, accumulate: int = 1) -> StageLoop:
    return StageLoop(
        StageProgram(
            stage=stage,
            stages=2,
            delay=0,
            accumulate=accumulate,
            feedback=feedback,
            link_delay=late,
            labelled=True,
        )
    )


def test_a_stage_with_a_loss_of_its_own_needs_labels_and_no_gradient():
    loop = local("none")
    assert loop.arrived("features", batch(0)) == []
    assert loop.awaits == "labels"
    assert spell_all(loop.arrived("labels", batch(0))) == "F0 B0 U0"
    assert loop.awaits == "features"
    assert loop.arrived("features", Message(Kind.DRAIN, 1)) != []
    assert spell_all(loop.arrived("features", evaluate(0))) == "E0", "tests need no labels here"
    assert spell_all(loop.arrived("features", Message(Kind.FINISH, 1))) == "end"


def test_an_estimate_is_corrected_when_its_gradient_has_come_and_not_before_its_turn():
    loop = local("target")
    assert loop.arrived("gradients", batch(0)) == []
    for n, expected in ((0, "F0 B0 U0"), (1, "F1 B1 C0 U1"), (2, "F2 B2")):
        assert loop.arrived("labels", batch(n)) == []
        assert spell_all(loop.arrived("features", batch(n))) == expected
    assert loop.awaits == "gradients"
    assert spell_all(loop.arrived("gradients", batch(1))) == "C1 U2"


def test_the_drain_makes_every_correction_that_is_left_after_the_last_window():
    loop = local("target", late=3, accumulate=2)
    for n in range(3):
        loop.arrived("labels", batch(n))
        loop.arrived("features", batch(n))
    assert spell_all(loop.arrived("features", Message(Kind.DRAIN, 3))) == "drain U1"
    assert loop.awaits == "gradients"
    released = [spell_all(loop.arrived("gradients", batch(n))) for n in range(3)]
    assert released == ["C0", "C1", "C2"]
    assert spell_all(loop.arrived("features", Message(Kind.FINISH, 3))) == "end"


def test_the_last_stage_has_nothing_to_correct():
    loop = local("target", stage=1)
    loop.arrived("labels", batch(0))
    assert spell_all(loop.arrived("features", batch(0))) == "F0 B0 U0"
    assert loop.awaits == "features"


def test_an_estimate_that_is_never_corrected_is_an_error():
    loop = local("target")
    loop.arrived("labels", batch(0))
    loop.arrived("features", batch(0))
    with pytest.raises(MailboxError, match="stage 0 finished, but"):
        loop.arrived("features", Message(Kind.FINISH, 1))


# ------------------------------------------------------------------ rechecks


def recheck(n: int, part: int, parts: int) -> Message:
    return Message(Kind.RECHECK, n, (), part, parts)


def test_a_group_of_rechecks_goes_up_whole_and_then_down_while_nothing_else_goes_on():
    loop = StageLoop(delayed(1))
    loop.arrived("features", batch(0))
    assert spell_all(loop.arrived("features", recheck(1, 0, 2))) == "K1"
    assert spell_all(loop.arrived("features", recheck(0, 1, 2))) == "K0"
    assert loop.arrived("features", batch(1)) == []
    assert loop.awaits == "gradients"
    assert loop.arrived("gradients", batch(0)) == []
    assert spell_all(loop.arrived("gradients", recheck(1, 0, 2))) == "G1"
    assert spell_all(loop.arrived("gradients", recheck(0, 1, 2))) == "G0! F1 B0 U1"


def test_the_last_stage_needs_the_labels_of_a_recheck():
    loop = StageLoop(ddg(2))
    assert loop.arrived("features", recheck(0, 0, 1)) == []
    assert loop.arrived("labels", batch(0)) == []
    assert loop.awaits == "labels"
    assert spell_all(loop.arrived("labels", recheck(0, 0, 1))) == "K0 G0!"


# ------------------------------------------------------------------ reports and tests


def test_reports_come_after_every_second_batch_and_at_the_end_of_the_epoch():
    assert spell_all(run_alone(delayed(1, report_every=2), stream([5]))) == (
        "F0 U0 F1 B0 U1 R2 F2 B1 U2 F3 B2 U3 R4 F4 B3 U4 drain B4 U5 R5e0 end"
    )


def test_a_report_waits_for_the_last_micro_batch():
    program = StageProgram(stage=0, stages=2, delay=None, flush=True, report_every=1)
    assert spell_all(run_alone(program, stream([2], parts=2))) == (
        "F0.0 F0.1 B0.0 B0.1 U0 R1 F1.0 F1.1 B1.0 B1.1 U1 R2 drain R2e0 end"
    )


def test_steps_are_counted_over_all_epochs_and_the_pipeline_stays_full_between_them():
    assert spell_all(run_alone(delayed(1), stream([2, 1]))) == (
        "F0 U0 F1 B0 U1 R2e0 F2 B1 U2 drain B2 U3 R3e1 end"
    )


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (0, "F0 U0 F1 B0 U1 E0 E1 R2e0 F2 B1 U2 drain B2 U3 E2 E3 R3e1 end"),
        (1, "F0 B0 U0 F1 B1 U1 E0 E1 R2e0 F2 B2 U2 drain E2 E3 R3e1 end"),
    ],
)
def test_tests_run_between_epochs_and_after_the_drain(k: int, expected: str):
    assert spell_all(run_alone(ddg(k, stages=2), stream([2, 1], tests=2))) == expected


def test_a_test_batch_does_not_overtake_the_batch_before_it():
    loop = StageLoop(delayed(0))
    assert spell_all(loop.arrived("features", batch(0))) == "F0"
    assert loop.arrived("features", evaluate(0)) == []
    assert spell_all(loop.arrived("gradients", batch(0))) == "B0 U0 E0"


# ------------------------------------------------------------------ what a stage waits for


def test_awaits_names_the_missing_box_at_every_step_of_a_middle_stage():
    loop = StageLoop(ddg(1))
    steps: list[tuple[Box, Message, str, Box | None]] = [
        ("features", batch(0), "F0 U0", "features"),
        ("features", batch(1), "F1", "gradients"),
        ("gradients", batch(0), "B0 U1", "features"),
        ("gradients", batch(1), "", "features"),
        ("features", batch(2), "F2 B1 U2", "features"),
        ("features", Message(Kind.DRAIN, 3), "drain", "gradients"),
        ("features", Message(Kind.EPOCH, 0), "", "gradients"),
        ("gradients", batch(2), "B2 U3 R3e0", "features"),
        ("features", Message(Kind.FINISH, 3), "end", None),
    ]
    assert loop.awaits == "features"
    for box, message, released, awaits in steps:
        assert spell_all(loop.arrived(box, message)) == released
        assert loop.awaits == awaits


def test_the_last_stage_awaits_labels_for_every_forward_and_every_test():
    loop = StageLoop(ddg(2))
    steps: list[tuple[Box, Message, str, Box | None]] = [
        ("features", batch(0), "", "labels"),
        ("labels", batch(0), "F0 B0 U0", "features"),
        ("labels", batch(1), "", "features"),
        ("features", batch(1), "F1 B1 U1", "features"),
        ("features", Message(Kind.DRAIN, 2), "drain", "features"),
        ("features", evaluate(0), "", "labels"),
        ("labels", evaluate(0), "E0", "features"),
        ("features", Message(Kind.FINISH, 2), "end", None),
    ]
    assert loop.awaits == "features"
    for box, message, released, awaits in steps:
        assert spell_all(loop.arrived(box, message)) == released
        assert loop.awaits == awaits


def test_the_labels_of_a_test_batch_do_not_pass_for_those_of_a_batch():
    loop = StageLoop(ddg(2))
    loop.arrived("features", batch(0))
    assert loop.arrived("labels", evaluate(0)) == []
    assert loop.awaits == "labels"


def test_every_micro_batch_needs_its_own_labels():
    loop = StageLoop(StageProgram(stage=0, stages=1, delay=None, flush=True))
    loop.arrived("features", batch(0, 0, 2))
    loop.arrived("features", batch(0, 1, 2))
    assert loop.arrived("labels", batch(0, 1, 2)) == []
    assert spell_all(loop.arrived("labels", batch(0, 0, 2))) == "F0.0 F0.1 B0.0 B0.1 U0"


def test_gradients_that_come_early_or_out_of_order_do_not_change_the_order():
    loop = StageLoop(delayed(1))
    assert spell_all(loop.arrived("features", batch(0))) == "F0 U0"
    assert loop.arrived("gradients", batch(1)) == []
    assert loop.arrived("gradients", batch(0)) == []
    assert spell_all(loop.arrived("features", batch(1))) == "F1 B0 U1"
    assert spell_all(loop.arrived("features", batch(2))) == "F2 B1 U2"


def test_a_stage_counts_what_it_has_released():
    loop = StageLoop(delayed(1))
    counts = []
    for message in stream([3])[:4]:
        loop.arrived("features", message)
        if message.index:
            loop.arrived("gradients", batch(message.index - 1))
        counts.append((loop.batches, loop.applied, loop.in_flight))
    assert counts == [(1, 0, 1), (2, 1, 1), (3, 2, 1), (3, 3, 0)]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("box", ["gradients", "labels"])
def test_a_message_that_comes_twice_is_an_error(box: Box):
    loop = StageLoop(ddg(1))
    loop.arrived(box, batch(5))
    with pytest.raises(MailboxError, match=f"stage 1 got .*{box}.* twice"):
        loop.arrived(box, batch(5))


def test_the_same_number_in_another_box_or_of_another_kind_is_no_duplicate():
    loop = StageLoop(ddg(2))
    arrivals: list[tuple[Box, Message]] = [
        ("gradients", batch(5)),
        ("labels", batch(5)),
        ("labels", evaluate(5)),
        ("labels", batch(5, 1, 2)),
    ]
    assert [loop.arrived(box, message) for box, message in arrivals] == [[], [], [], []]


def test_labels_that_nobody_used_are_an_error_at_the_end():
    loop = StageLoop(ddg(2))
    loop.arrived("labels", batch(0))
    loop.arrived("features", Message(Kind.DRAIN, 0))
    with pytest.raises(MailboxError, match=r"stage 2 finished, but these are left: .*labels"):
        loop.arrived("features", Message(Kind.FINISH, 0))


def test_units_without_a_backward_are_an_error_at_the_end():
    loop = StageLoop(ddg(0))
    loop.arrived("features", batch(0))
    with pytest.raises(MailboxError, match="stage 0 finished, but"):
        loop.arrived("features", Message(Kind.FINISH, 1))


def test_a_batch_behind_the_end_is_an_error():
    loop = StageLoop(delayed(0))
    loop.arrived("features", batch(0))
    loop.arrived("features", Message(Kind.FINISH, 1))
    loop.arrived("features", batch(1))
    with pytest.raises(MailboxError, match="stage 0 finished, but"):
        loop.arrived("gradients", batch(0))


def test_a_probe_among_the_features_of_a_run_is_an_error():
    with pytest.raises(MailboxError, match=r"stage 0 got .*PROBE.* among features"):
        StageLoop(ddg(0)).arrived("features", Message(Kind.PROBE, 0))


# ------------------------------------------------------------------ lock step


def lock_step(delays: Sequence[int], *, barrier: bool = True, **more: int) -> list[StageProgram]:
    """Programs with the sums of these link delays."""
    offsets = [sum(d >= 2 for d in delays[:k]) for k in range(len(delays) + 1)]
    sums = [sum(delays[k:]) for k in range(len(delays) + 1)]
    return [
        StageProgram(
            stage=k,
            stages=len(sums),
            delay=sums[k],
            barrier=barrier,
            offset=offsets[k],
            span=max(o + d for o, d in zip(offsets, sums, strict=True)),
            **more,
        )
        for k in range(len(sums))
    ]


def run_together(
    programs: Sequence[StageProgram], features: Sequence[Message], seed: int
) -> list[tuple[int, Instruction]]:
    """Run all stages; messages of a box come in order, those of different boxes in any order.

    Returns (stage, instruction) in the order in which they were carried out.
    """
    rng = random.Random(seed)
    loops = [StageLoop(program) for program in programs]
    top = len(loops) - 1
    queues: dict[tuple[Box, int], deque[Message]] = {
        (box, k): deque() for box in ("features", "labels", "gradients") for k in range(top + 1)
    }
    queues["features", 0] += features
    queues["labels", top] += [m for m in features if m.kind in (Kind.BATCH, Kind.EVALUATE)]
    log: list[tuple[int, Instruction]] = []

    def carry_out(k: int, released: Sequence[Instruction]) -> None:
        for instruction in released:
            log.append((k, instruction))
            match instruction:
                case Forward(unit) if k < top:
                    queues["features", k + 1].append(Message.of(unit, ()))
                case Backward(unit) if k > 0:
                    queues["gradients", k - 1].append(Message.of(unit, ()))
                case PassToken(tick, "below"):
                    queues["gradients", k - 1].append(token(tick))
                case PassToken(tick, "above"):
                    queues["features", k + 1].append(token(tick))
                case Evaluate(index) if k < top:
                    queues["features", k + 1].append(evaluate(index))
                case StartDrain() if k < top:
                    queues["features", k + 1].append(Message(Kind.DRAIN, loops[k].batches))
                case Report(_, epoch) if k < top and epoch is not None:
                    queues["features", k + 1].append(Message(Kind.EPOCH, epoch))
                case Finish() if k < top:
                    queues["features", k + 1].append(Message(Kind.FINISH, loops[k].batches))

    for k, loop in enumerate(loops):
        carry_out(k, loop.start())
    while full := [key for key, queue in queues.items() if queue]:
        box, k = rng.choice(full)
        carry_out(k, loops[k].arrived(box, queues[box, k].popleft()))
    assert [loop.awaits for loop in loops] == [None] * len(loops), "the stages wait for each other"
    return log


def ticks(programs: Sequence[StageProgram], log: Sequence[tuple[int, Instruction]]) -> list[int]:
    """The tick to which each forward and backward belongs: n + offset, and the delay later."""
    found = []
    for k, instruction in log:
        program = programs[k]
        if isinstance(instruction, Forward):
            found.append(instruction.unit.batch + program.offset)
        elif isinstance(instruction, Backward):
            assert program.delay is not None
            found.append(instruction.unit.batch + program.offset + program.delay)
    return found


# Link delays: back-propagation, DDG, ADL and mixtures.
LOCKED = [[], [0, 0], [1], [1, 1, 1], [2], [2, 2], [2, 2, 2], [1, 0, 1], [3, 0, 2], [1, 2, 3, 1]]


@pytest.mark.parametrize("delays", LOCKED, ids=str)
def test_in_lock_step_no_stage_begins_a_tick_before_all_have_ended_the_one_before(
    delays: list[int],
):
    programs = lock_step(delays, accumulate=2)
    for seed in range(5):
        log = run_together(programs, stream([3, 2], tests=2), seed)
        found = ticks(programs, log)
        assert len(found) == 2 * 5 * len(programs)
        assert found == sorted(found)


def test_without_lock_step_the_stages_leave_each_other_behind():
    programs = lock_step([1, 1], barrier=False)
    found = ticks(programs, run_together(programs, stream([6]), 0))
    assert found != sorted(found)


@pytest.mark.parametrize("delays", LOCKED, ids=str)
def test_lock_step_changes_nothing_in_the_order_of_a_stage(delays: list[int]):
    free = run_together(lock_step(delays, barrier=False), stream([3, 2], tests=1), 0)
    locked = run_together(lock_step(delays), stream([3, 2], tests=1), 1)
    for k in range(len(delays) + 1):
        order = [i for stage, i in locked if stage == k and not isinstance(i, PassToken)]
        assert order == [i for stage, i in free if stage == k]


@pytest.mark.parametrize("delays", LOCKED, ids=str)
def test_every_stage_runs_the_same_ticks(delays: list[int]):
    programs, n = lock_step(delays), 3
    log = run_together(programs, stream([n]), 2)
    every = list(range(n + programs[0].span))
    for k, towards in itertools.product(range(len(programs)), ("below", "above")):
        passed = [
            i.tick
            for stage, i in log
            if stage == k and isinstance(i, PassToken) and i.towards == towards
        ]
        at_the_end = (k, towards) in [(0, "below"), (len(programs) - 1, "above")]
        assert passed == ([] if at_the_end else every)


def test_a_middle_stage_asks_those_above_first_and_those_below_second():
    loop = StageLoop(lock_step([1, 1])[1])
    steps: list[tuple[Box, Message, str, Box | None]] = [
        ("features", batch(0), "F0 U0", "gradients"),
        ("gradients", token(0), "v0", "features"),
        ("features", token(0), "^0", "features"),
        ("features", batch(1), "F1", "gradients"),
        ("gradients", batch(0), "B0 U1", "gradients"),
        ("gradients", token(1), "v1", "features"),
        ("features", token(1), "^1", "features"),
    ]
    for box, message, released, awaits in steps:
        assert spell_all(loop.arrived(box, message)) == released
        assert loop.awaits == awaits


def test_a_stage_that_lags_answers_for_the_ticks_before_its_first():
    programs = lock_step([2, 2])
    top, middle = StageLoop(programs[2]), StageLoop(programs[1])
    assert spell_all(top.start()) == "v0"
    assert top.awaits == "features"
    assert middle.start() == []
    assert middle.awaits == "gradients"
    assert spell_all(middle.arrived("gradients", token(0))) == "v0"
    assert spell_all(middle.arrived("features", token(0))) == "^0"
    assert spell_all(top.arrived("features", token(0))) == "v1"
    assert middle.awaits == "features"


@pytest.mark.parametrize("program", [*lock_step([1, 1]), ddg(0), ddg(2)], ids=repr)
def test_a_stage_that_does_not_lag_starts_with_its_features(program: StageProgram):
    loop = StageLoop(program)
    assert loop.start() == []
    assert loop.awaits == "features"
