"""Runs in a thread whose reports are handed over, and what a person sees of a search."""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from raylab.drivers.tuning.driving import Driving, Outcome, Report
from raylab.report import TrialLine, TuningView, tuning_table

pytestmark = pytest.mark.unit


@pytest.fixture
def driven() -> Iterator[Callable[..., Driving]]:
    with contextlib.ExitStack() as stack:

        def make(*, patient: bool = True, around: Any = contextlib.nullcontext) -> Driving:
            made = Driving(around, patient=patient)
            stack.callback(made.close)
            return made

        yield make


def counting(driving: Driving, heard: list[int], rows: int = 5) -> Callable[[], None]:
    """Return a run of so many rows that notes those after which it was told to go on."""

    def run() -> None:
        for k in range(rows):
            if driving.hear({"step": k}):
                return
            heard.append(k)

    return run


def steps(row: Any) -> Any:
    return {"step": row["step"]}


def test_reports_come_one_by_one_and_then_the_end(driven):
    driving, heard = driven(), []
    driving.begin(counting(driving, heard, rows=2), steps)
    first, second, end = driving.next(), driving.next(), driving.next()
    assert isinstance(first, Report)
    assert isinstance(second, Report)
    assert [first.row["step"], second.row["step"]] == [0, 1]
    assert end == Outcome(error=None)
    assert heard == [0, 1]


def test_a_patient_run_waits_at_its_report_and_ends_there_when_asked(driven):
    driving, heard = driven(), []
    driving.begin(counting(driving, heard), steps)
    driving.next()
    driving.next()
    driving.end()
    assert heard == [0]


def test_a_run_that_is_not_patient_goes_on_by_itself(driven):
    driving, heard, done = driven(patient=False), [], threading.Event()

    def run() -> None:
        counting(driving, heard)()
        done.set()

    driving.begin(run, steps)
    assert done.wait(30)
    assert heard == [0, 1, 2, 3, 4]


def test_rows_that_are_no_reports_do_not_wait(driven):
    driving, heard = driven(), []
    driving.begin(counting(driving, heard), lambda _: None)
    assert driving.next() == Outcome(error=None)
    assert heard == [0, 1, 2, 3, 4]


def test_another_run_follows_one_that_was_ended(driven):
    driving, heard = driven(), []
    driving.begin(counting(driving, heard), steps)
    driving.next()
    driving.end()
    driving.begin(counting(driving, heard, rows=1), steps)
    again = driving.next()
    assert isinstance(again, Report)
    assert again.row["step"] == 0
    assert driving.next() == Outcome(error=None)


def test_an_error_is_the_end_and_another_run_may_follow(driven):
    driving = driven()

    def fail() -> None:
        raise RuntimeError("broken")

    driving.begin(fail, steps)
    end = driving.next()
    assert isinstance(end, Outcome)
    assert str(end.error) == "broken"
    driving.begin(counting(driving, [], rows=1), steps)
    assert isinstance(driving.next(), Report)


def test_what_is_around_is_entered_in_the_thread_and_left_at_the_close():
    threads = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        threads.append(threading.current_thread().name)
        yield
        threads.append("left")

    driving = Driving(around, patient=True)
    driving.begin(lambda: None, steps)
    driving.next()
    driving.close()
    assert threads == ["run", "left"]


def test_what_cannot_be_entered_is_told_at_the_next_report(driven):
    @contextlib.contextmanager
    def around() -> Iterator[None]:
        raise RuntimeError("no room")
        yield

    driving = driven(around=around)
    driving.begin(lambda: None, steps)
    end = driving.next()
    assert isinstance(end, Outcome)
    assert str(end.error) == "no room"


def test_where_there_is_no_terminal_every_trial_is_a_line(capsys):
    line = TrialLine(number=3, params={"lr": 0.0512345}, state="finished")
    line.values = {"test_loss": 0.25, "bytes": None}
    with TuningView("tuning s", ["test_loss", "bytes"], 8) as view:
        view.show(line)
        view.ended(line, 4, "trial 1, test_loss 0.2")
    told = capsys.readouterr().err
    assert "[4/8] trial 3 finished: test_loss 0.25  bytes —  lr=0.0512" in told
    assert "best: trial 1, test_loss 0.2" in told


def test_the_live_table_has_running_trials_and_those_that_ended(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(
        importlib.import_module("raylab.report.tuning_table"),
        "Console",
        lambda **_: Console(file=written, force_terminal=True, width=100),
    )
    with TuningView("tuning s", ["test_loss"], None) as view:
        view.show(TrialLine(number=0, params={"lr": 0.1}, state="running", epoch=2))
        view.ended(TrialLine(number=1, params={"lr": 0.2}, state="scheduler"), 1, "none yet")
    shown = written.getvalue()
    assert "running" in shown
    assert "scheduler" in shown
    assert "lr=0.2" in shown


def test_the_table_at_the_end_has_the_best_the_states_and_the_share_of_starting():
    best = {"number": 2, "params": {"lr": 0.1}, "values": {"test_loss": 0.5}}
    summary = {
        "trials": {"complete": 3, "ended early": 1, "failed": 0, "running": 0},
        "best": best,
        "front": [best],
        "start_share": 0.25,
        "time_s": 12.5,
    }
    written = io.StringIO()
    Console(file=written, width=100).print(tuning_table("tuning s", summary))
    for each in ("3 complete, 1 ended early", "test_loss 0.5", "best lr", "25%", "12.5"):
        assert each in written.getvalue()
    nothing = {**summary, "best": None, "front": [], "start_share": None}
    Console(file=written).print(tuning_table("tuning s", nothing))
