"""What a pipeline computes does not depend on when its messages come.

Random pipelines are run twice in one thread, once with every message delivered at once and once
late, out of order and with the stages' turns shuffled. Calls and numbers must be identical; and
the calls must be those of the definition F(n), B(n - D), an update every M batches; or, where a
stage makes its error gradient itself, F(n), B(n), C(n - d), an update every M batches.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.pipeline.in_process import run_in_process
from actors.pipeline.program import Feedback, StageProgram
from actors.pipeline.runner import StageRunner
from actors.units import Tensors, Unit

pytestmark = pytest.mark.property

CASES = settings(max_examples=60, deadline=None, derandomize=True)
TIMES = ("time_s", "trained_s", "blocked_s")
Call = tuple[Any, ...]


class RecordingRule:
    """y = tanh(w·x), w at the forward's version; notes every call with all numbers that it saw.

    With labels of its own it makes its error gradient from them; what corrects it scales the next.
    """

    def __init__(self, stage: int) -> None:
        self.calls: list[Call] = []
        self.log: list[Call] | None = None
        self.weight = torch.tensor(0.9 + 0.1 * stage, dtype=torch.float64)
        self._stage = stage
        self._gradient = torch.zeros((), dtype=torch.float64)
        self._scale = torch.ones((), dtype=torch.float64)
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._again: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        (x,) = inputs
        y = torch.tanh(self.weight * x)
        # The error gradient of the last stage, and of those that make their own.
        error = unit.share * (y - labels[0]) / len(y) if labels else torch.empty(0)
        self._kept[unit.batch, unit.part] = (x, self.weight, error)
        self._note("F", unit, x, y, error)
        return (y,)

    def backward(self, unit: Unit, gradients: Tensors) -> Tensors:
        x, weight, error = self._kept.pop((unit.batch, unit.part))
        (above,) = gradients or (error * self._scale,)
        inside = above * (1 - torch.tanh(weight * x) ** 2)
        self._gradient = self._gradient + (inside * x).sum()
        below = inside * weight
        self._note("B", unit, above, below)
        return (below,)

    def correct(self, unit: Unit, gradients: Tensors) -> None:
        (true,) = gradients
        self._scale = 0.5 * self._scale + true.sum()
        self._note("C", unit, true, self._scale)

    def recheck(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        (x,) = inputs
        y = torch.tanh(self.weight * x)
        self._again[unit.batch, unit.part] = (x, y - labels[0] if labels else torch.empty(0))
        self._note("K", unit, x, y)
        return (y,)

    def compare(self, unit: Unit, gradients: Tensors, *, due: bool) -> Tensors:
        x, error = self._again.pop((unit.batch, unit.part))
        (above,) = gradients or (error,)
        below = above * (1 - torch.tanh(self.weight * x) ** 2) * self.weight
        self._note("G", unit, torch.tensor(due), above)
        return (below,)

    def update(self) -> None:
        self.weight = self.weight - 0.5 * self._gradient
        self._gradient = torch.zeros((), dtype=torch.float64)
        self._note("U", None, self.weight)

    def evaluate(self, inputs: Tensors, labels: Tensors) -> Tensors:
        (x,) = inputs
        y = torch.tanh(self.weight * x)
        self._note("E", None, x, y, *labels)
        return (y,)

    def report(self) -> Mapping[str, Any]:
        self._note("R", None)
        return {"weight": self.weight.item()}

    def state(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight}

    def measure(self, inputs: Tensors, repeats: int) -> Sequence[tuple[float, float]]:
        return [(0.0, 0.0)] * repeats

    def _note(self, name: str, unit: Unit | None, *tensors: Tensor) -> None:
        at = () if unit is None else (unit.batch, unit.part, unit.parts)
        self.calls.append((name, *at, *[t.tolist() for t in tensors]))
        if self.log is not None:
            self.log.append((self._stage, name, *at))


@dataclass(frozen=True)
class Case:
    """One pipeline and its data; `link_delays` are those of the links from the input up."""

    link_delays: tuple[int, ...]
    sizes: tuple[int, ...]
    accumulate: int = 1
    parts: int = 1
    synchronous: str | None = None
    epochs: int = 1
    tests: int = 0
    report_every: int = 0
    barrier: bool = False
    feedback: Feedback = "error"
    recheck_every: int = 0

    @property
    def stages(self) -> int:
        return len(self.link_delays) + 1

    @property
    def batches(self) -> int:
        return self.epochs * len(self.sizes)

    def delay(self, k: int) -> int | None:
        if self.synchronous == "gpipe":
            return None
        if self.synchronous == "1f1b":
            return self.stages - 1 - k
        return sum(self.link_delays[k:]) if self.feedback == "error" else 0

    def programs(self) -> list[StageProgram]:
        offsets = [sum(d >= 2 for d in self.link_delays[:k]) for k in range(self.stages)]
        delays = [self.delay(k) for k in range(self.stages)]
        return [
            StageProgram(
                stage=k,
                stages=self.stages,
                delay=delays[k],
                accumulate=self.accumulate,
                flush=self.synchronous is not None,
                report_every=self.report_every,
                barrier=self.barrier,
                offset=offsets[k],
                span=max(o + (d or 0) for o, d in zip(offsets, delays, strict=True)),
                feedback=self.feedback,
                link_delay=[*self.link_delays, 0][k],
                labelled=self.feedback != "error",
            )
            for k in range(self.stages)
        ]

    def data(self, sizes: Sequence[int], seed: int) -> list[tuple[Tensor, Tensor]]:
        numbers = torch.Generator().manual_seed(seed)
        draw = {"generator": numbers, "dtype": torch.float64}
        return [(torch.randn(size, **draw), torch.randn(size, **draw)) for size in sizes]


@st.composite
def cases(draw: st.DrawFn, *, synchronous: bool | None = None, parts: bool = True) -> Case:
    kinds = {True: ["gpipe", "1f1b"], False: [None], None: [None, None, "gpipe", "1f1b"]}
    return Case(
        link_delays=tuple(draw(st.lists(st.integers(0, 3), max_size=4))),
        sizes=tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))),
        accumulate=draw(st.integers(1, 4)),
        parts=draw(st.integers(1, 4)) if parts else 1,
        synchronous=draw(st.sampled_from(kinds[synchronous])),
        epochs=draw(st.integers(1, 2)),
        tests=draw(st.integers(0, 3)),
        report_every=draw(st.integers(0, 3)),
    )


@dataclass(frozen=True)
class Outcome:
    """What a run did, stage by stage, and how it left its stages."""

    calls: list[list[Call]]
    rows: list[list[dict[str, Any]]]
    weights: list[float]
    runners: list[StageRunner]
    log: list[Call]


def run(case: Case, shuffle: int | None = None) -> Outcome:
    rules = [RecordingRule(k) for k in range(case.stages)]
    log: list[Call] = []
    for rule in rules:
        rule.log = log
    runners, rows = run_in_process(
        case.programs(),
        rules,
        case.data(case.sizes, seed=1),
        case.data([3] * case.tests, seed=2) if case.tests else None,
        epochs=case.epochs,
        parts=case.parts,
        recheck_every=case.recheck_every,
        recheck_ages=sorted({case.delay(k) or 0 for k in range(case.stages)}),
        shuffle=None if shuffle is None else random.Random(shuffle),
    )
    return Outcome(
        calls=[rule.calls for rule in rules],
        rows=[[row for row in rows if row["stage"] == k] for k in range(case.stages)],
        weights=[rule.weight.item() for rule in rules],
        runners=runners,
        log=log,
    )


def figures(outcome: Outcome) -> list[list[dict[str, Any]]]:
    """The reports without times and peaks, which are all that may differ."""
    return [
        [
            {
                name: value
                for name, value in row.items()
                if name not in TIMES and not name.endswith(("_peak_depth", "_bytes_peak"))
            }
            for row in rows
        ]
        for rows in outcome.rows
    ]


def named(calls: Sequence[Call], name: str) -> list[Call]:
    return [call[1:4] for call in calls if call[0] == name]


@CASES
@given(case=cases(), seed=st.integers(0, 2**32))
def test_late_and_shuffled_messages_change_no_call_and_no_number(case: Case, seed: int):
    event(f"{case.synchronous or 'delayed'}, {case.stages} stages")
    plain, shuffled = run(case), run(case, shuffle=seed)
    assert shuffled.calls == plain.calls
    assert shuffled.weights == plain.weights
    assert figures(shuffled) == figures(plain)


@CASES
@given(case=cases(), seed=st.integers(0, 2**32))
def test_every_unit_goes_forward_and_backward_once_at_every_stage(case: Case, seed: int):
    outcome = run(case, shuffle=seed)
    for k, calls in enumerate(outcome.calls):
        forwards = named(calls, "F")
        assert [call[0] for call in forwards if call[1] == 0] == list(range(case.batches))
        assert forwards == named(outcome.calls[0], "F")
        assert named(calls, "B") == forwards
        assert len(set(forwards)) == len(forwards)
        assert outcome.runners[k].loop.batches == case.batches
        assert outcome.runners[k].loop.applied == len(forwards)
        assert len(named(calls, "E")) == case.epochs * case.tests


@CASES
@given(case=cases(), seed=st.integers(0, 2**32))
def test_nothing_remains_after_the_end(case: Case, seed: int):
    for runner in run(case, shuffle=seed).runners:
        assert runner.finished
        assert runner.remains() == {}


@CASES
@given(case=cases(synchronous=False, parts=False), seed=st.integers(0, 2**32))
def test_a_delayed_stage_makes_the_calls_of_the_definition(case: Case, seed: int):
    outcome = run(replace(case, report_every=0, tests=0), shuffle=seed)
    n_batches = case.batches
    for k, calls in enumerate(outcome.calls):
        delay = sum(case.link_delays[k:])
        expected: list[str] = []
        for n in range(n_batches + delay):
            expected += [f"F{n}"] if n < n_batches else []
            expected += [f"B{n - delay}"] if n >= delay else []
            expected += ["U"] if (n + 1) % case.accumulate == 0 else []
        expected += ["U"] if (n_batches + delay) % case.accumulate else []
        made = [c[0] + (str(c[1]) if c[0] in "FB" else "") for c in calls if c[0] != "R"]
        assert made == expected


@CASES
@given(case=cases(synchronous=True), seed=st.integers(0, 2**32))
def test_gpipe_and_1f1b_compute_the_same_whatever_the_order_of_their_micro_batches(
    case: Case, seed: int
):
    gpipe = run(replace(case, synchronous="gpipe"), shuffle=seed)
    one_by_one = run(replace(case, synchronous="1f1b"), shuffle=seed + 1)
    locked = run(replace(case, synchronous=None, link_delays=(0,) * (case.stages - 1)))
    assert gpipe.weights == one_by_one.weights == locked.weights
    for calls, others in zip(gpipe.calls, one_by_one.calls, strict=True):
        assert sorted(calls, key=repr) == sorted(others, key=repr)


@CASES
@given(case=cases(synchronous=False, parts=False), seed=st.integers(0, 2**32))
def test_lock_step_changes_no_call_and_no_number_and_keeps_all_stages_in_one_tick(
    case: Case, seed: int
):
    locked = replace(case, barrier=True)
    outcome, free = run(locked, shuffle=seed), run(case)
    assert outcome.calls == free.calls
    assert outcome.weights == free.weights
    programs = locked.programs()
    ticks = []
    for k, name, *at in outcome.log:
        if name in "FB":
            late = programs[k].delay if name == "B" else 0
            ticks.append(at[0] + programs[k].offset + late)
    assert ticks == sorted(ticks)


@CASES
@given(case=cases(synchronous=False, parts=False), seed=st.integers(0, 2**32))
def test_the_delays_of_the_links_are_seen_in_the_numbers(case: Case, seed: int):
    """The comparison above could not fail if the rule's numbers did not tell the order."""
    assume(sum(case.link_delays) and case.batches > case.accumulate)
    prompt = replace(case, link_delays=(0,) * len(case.link_delays))
    assert run(case, shuffle=seed).weights != run(prompt).weights


@st.composite
def local_cases(draw: st.DrawFn) -> Case:
    feedback: Feedback = draw(st.sampled_from(["target", "none"]))
    return replace(draw(cases(synchronous=False, parts=False)), feedback=feedback)


@CASES
@given(case=local_cases(), seed=st.integers(0, 2**32))
def test_stages_with_gradients_of_their_own_do_not_depend_on_arrivals_either(case: Case, seed: int):
    plain, shuffled = run(case), run(case, shuffle=seed)
    assert shuffled.calls == plain.calls
    assert figures(shuffled) == figures(plain)
    for runner in shuffled.runners:
        assert runner.finished
        assert runner.remains() == {}


@CASES
@given(case=local_cases(), seed=st.integers(0, 2**32))
def test_such_a_stage_makes_the_calls_of_its_definition(case: Case, seed: int):
    outcome = run(replace(case, report_every=0, tests=0), shuffle=seed)
    for k, calls in enumerate(outcome.calls):
        corrected = case.feedback == "target" and k < case.stages - 1
        late = case.link_delays[k] if corrected else 0
        expected: list[str] = []
        for n in range(case.batches):
            expected += [f"F{n}", f"B{n}"]
            expected += [f"C{n - late}"] if corrected and n >= late else []
            expected += ["U"] if (n + 1) % case.accumulate == 0 else []
        expected += ["U"] if case.batches % case.accumulate else []
        if corrected:
            expected += [f"C{b}" for b in range(max(0, case.batches - late), case.batches)]
        made = [c[0] + (str(c[1]) if c[0] in "FBC" else "") for c in calls if c[0] != "R"]
        assert made == expected


@CASES
@given(
    case=cases(synchronous=False, parts=False), every=st.integers(1, 3), seed=st.integers(0, 2**32)
)
def test_rechecks_change_no_other_call_and_meet_every_stage_at_one_index(
    case: Case, every: int, seed: int
):
    plain, measured = run(case), run(replace(case, recheck_every=every), shuffle=seed)
    oldest = case.delay(0) or 0
    due = [n for n in range(case.batches) if n % every == 0 and n >= oldest]
    for k, calls in enumerate(measured.calls):
        assert [call for call in calls if call[0] not in "KG"] == plain.calls[k]
        seen, wanted = 0, []
        for call in calls:
            seen += call[0] == "F"
            if call[0] == "G" and call[-2]:
                wanted.append((seen, call[1]))
        assert wanted == [(n, n - (case.delay(k) or 0)) for n in due]
    for runner in measured.runners:
        assert runner.remains() == {}
