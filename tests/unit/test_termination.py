"""Signals that ask for the end of a command, and those that are none of its business."""

from __future__ import annotations

import signal
import sys
import types
from collections.abc import Callable

import pytest

from raylab.cli import main as cli
from raylab.drivers import termination
from raylab.drivers.termination import TERMINATION, LastCheckpoint, Terminated, Termination
from raylab.errors import RaylabError

pytestmark = pytest.mark.unit


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int | None]], int]:
    """Return a function that carries out a command whose work is what is given."""

    def carry_out(work: Callable[[], int | None]) -> int:
        module = types.ModuleType("a_command")
        module.run = lambda _: work() or 0  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "a_command", module)
        monkeypatch.setitem(cli.COMMANDS, "work", ("a_command", "for a test"))
        return cli.main(["work"])

    return carry_out


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_command_with_one_line_and_its_own_exit_code(command, capsys, name, code):
    def work():
        signal.raise_signal(getattr(signal, name))
        pytest.fail("the signal did not end the command")

    assert command(work) == code
    assert capsys.readouterr().err == f"raylab: ended by {name}\n"


def test_the_line_says_how_to_go_on_where_there_is_a_way(command, capsys):
    def work():
        with TERMINATION.resumed_by(lambda: "raylab resume runs/a"):
            signal.raise_signal(signal.SIGTERM)

    assert command(work) == 143
    assert capsys.readouterr().err == "raylab: ended by SIGTERM: go on with raylab resume runs/a\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RaylabError("a lost stage")])
def test_whatever_a_signal_comes_out_as_the_line_and_the_code_are_the_same(command, capsys, error):
    """Ray makes a KeyboardInterrupt of every interruption; actors may get the signal, too."""

    def work():
        with TERMINATION.watched():
            signal.raise_signal(signal.SIGTERM)
            raise error

    assert command(work) == 143
    assert capsys.readouterr().err == "raylab: ended by SIGTERM\n"


def test_an_interrupt_stays_an_interrupt(command, capsys):
    def work():
        with TERMINATION.resumed_by(lambda: "raylab resume runs/a"):
            signal.raise_signal(signal.SIGINT)

    assert command(work) == 130
    assert capsys.readouterr().err == "raylab: interrupted\n"


def test_a_run_that_watches_goes_on_until_its_checkpoint_is_there_or_a_second_signal(command):
    done: list[str] = []

    def work():
        with TERMINATION.watched():
            signal.raise_signal(signal.SIGTERM)
            assert TERMINATION.requested
            done.append("saved")
            signal.raise_signal(signal.SIGTERM)
            done.append("never")

    assert command(work) == 143
    assert done == ["saved"]


def test_a_run_that_takes_too_long_to_save_is_ended(command, monkeypatch):
    monkeypatch.setattr(termination, "GRACE_S", 0.01)

    def work():
        with TERMINATION.watched():
            signal.raise_signal(signal.SIGTERM)
            signal.pause()  # for the reminder

    assert command(work) == 143


def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored(command):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        assert command(lambda: signal.raise_signal(signal.SIGHUP)) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == mine
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_another_thread_finds_out_reaches_a_command_that_waits(command, capsys):
    def work():
        TERMINATION.fail(RaylabError("Ray's GCS has died"))
        signal.pause()

    assert command(work) == 1
    assert capsys.readouterr().err == "raylab: error: Ray's GCS has died\n"


def test_a_last_checkpoint_is_asked_for_once_and_ends_the_run_when_it_is_whole(monkeypatch):
    mine = Termination()
    monkeypatch.setattr(termination, "TERMINATION", mine)
    committed, asked = [40], []
    last = LastCheckpoint(lambda: asked.append(1), lambda: committed[-1], on=True)
    with last:
        last.look()
        assert not asked
        mine.signum = signal.SIGTERM
        last.look()
        last.look()
        assert asked == [1]
        committed.append(52)
        with pytest.raises(Terminated):
            last.look()


def test_a_run_without_checkpoints_is_ended_at_once(command):
    def work():
        with LastCheckpoint(list, lambda: -1, on=False):
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the signal did not end the run")

    assert command(work) == 143
