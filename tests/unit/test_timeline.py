"""What a stage did when: spans of the first batches, and nothing after them."""

from __future__ import annotations

import time

import pytest
import torch

from actors.pipeline.in_process import run_in_process
from actors.pipeline.program import StageProgram
from actors.pipeline.timeline import Timeline
from raylab.records import timeline_rows
from tests.unit.test_runner import FakeRule

pytestmark = pytest.mark.unit

BATCHES = [(torch.full((4, 3), float(n)), torch.full((4,), n)) for n in range(6)]


def spans_of(timeline: int, stages: int = 2, epochs: int = 1) -> list[dict[str, object]]:
    programs = [
        StageProgram(stage=k, stages=stages, delay=stages - 1 - k, timeline=timeline)
        for k in range(stages)
    ]
    rules = [FakeRule() for _ in programs]
    _, rows = run_in_process(programs, rules, BATCHES, BATCHES[:1], epochs=epochs)
    return timeline_rows(rows)


def test_a_whole_run_has_every_operation_once_at_every_stage():
    spans = spans_of(timeline=100)
    for stage in range(2):
        for kind in ("forward", "backward"):
            mine = [s["batch"] for s in spans if s["stage"] == stage and s["kind"] == kind]
            assert mine == list(range(len(BATCHES)))
        kinds = [s["kind"] for s in spans if s["stage"] == stage]
        assert kinds.count("update") in (len(BATCHES), len(BATCHES) + 1)
        assert kinds.count("evaluate") == 1


def test_spans_of_a_stage_follow_one_another_on_the_walls_clock():
    before = time.time()
    spans = spans_of(timeline=100)
    after = time.time()
    for stage in range(2):
        times = [(s["start_s"], s["end_s"]) for s in spans if s["stage"] == stage]
        flat = [moment for pair in times for moment in pair]
        assert flat == sorted(flat)
        # Two clocks, read one after the other: they agree to well below a second.
        assert before - 1 < flat[0] < flat[-1] < after + 1


def test_nothing_is_noted_from_the_first_batch_beyond_the_limit_on():
    spans = spans_of(timeline=3, epochs=2)
    assert {s["batch"] for s in spans} == {0, 1, 2}
    forwards = [s["batch"] for s in spans if s["stage"] == 0 and s["kind"] == "forward"]
    assert forwards == [0, 1, 2]
    assert not any(s["kind"] == "evaluate" for s in spans)


def test_spans_of_many_epochs_come_once():
    spans = spans_of(timeline=100, epochs=3)
    forwards = [s["batch"] for s in spans if s["stage"] == 1 and s["kind"] == "forward"]
    assert forwards == list(range(18))


def test_a_timeline_of_no_batches_is_empty():
    assert spans_of(timeline=0) == []
    assert not Timeline(0).open


def test_a_wait_that_was_interrupted_is_one_wait_and_a_look_is_none():
    line = Timeline(10)
    line.add("forward", 4, 1.0, 2.0)
    line.add("waiting", None, 2.0, 2.000001)
    line.add("waiting", None, 2.0, 2.2)
    line.add("waiting", None, 2.2001, 2.4)
    line.add("waiting", None, 2.5, 2.6)
    spans = line.take()
    assert [(s.kind, s.batch) for s in spans] == [("forward", 4), ("waiting", 4), ("waiting", 4)]
    assert [round(s.end - s.start, 6) for s in spans] == [1.0, 0.4, 0.1]
    assert line.take() == []


def test_the_list_is_bounded_whatever_comes_between_two_batches(monkeypatch):
    monkeypatch.setattr("actors.pipeline.timeline._MOST", 5)
    line = Timeline(10)
    for index in range(100):
        line.add("evaluate", None, float(index), index + 0.5)
    assert len(line.take()) == 5
    assert not line.open
