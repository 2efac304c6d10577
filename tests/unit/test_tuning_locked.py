"""A study that another process has locked, and losses within trials: waited for, and told."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.errors import ActorLostError
from raylab.config.tuning import tuning_config
from raylab.drivers import recovery
from raylab.drivers.tuning.patient_sqlite import LockWatch, connection_class
from raylab.drivers.tuning.run import study_of
from raylab.drivers.tuning.study import DATABASE, TuningStudy
from raylab.drivers.tuning.watch import Watch
from raylab.errors import ResourceError

pytestmark = pytest.mark.unit


class Clock:
    """Tells a minute more each time that it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 60.0
        return self.now


def connected(path: Path, watch: LockWatch) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=0, factory=connection_class(watch))


def test_a_statement_is_given_again_until_the_lock_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("create table t (x)")
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            other.execute("commit")

    mine = connected(path, LockWatch(path, say, clock=Clock()))
    other.execute("begin exclusive")
    mine.cursor().execute("insert into t values (?)", (7,))
    mine.commit()
    assert other.execute("select x from t").fetchall() == [(7,)]
    assert said[1] == (
        f"database is locked: {path} is in use by another process, waiting for it (120 s so far)"
    )
    assert len(said) == 3


def test_a_lock_that_stays_is_an_error_with_the_command_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("create table t (x)")
    other.execute("begin exclusive")
    said: list[str] = []
    watch = LockWatch(path, said.append, clock=Clock())
    cursor = connected(path, watch).cursor()
    message = (
        rf"database is locked: .* for 600 s: .* raylab tune --resume {re.escape(str(tmp_path))}$"
    )
    with pytest.raises(ResourceError, match=message):
        cursor.execute("insert into t values (1)")
    assert len(said) == 9
    # What is written afterwards fails at once: ten minutes are enough.
    with pytest.raises(ResourceError):
        cursor.executemany("insert into t values (?)", [(1,), (2,)])
    assert len(said) == 9


def test_other_mistakes_are_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    said: list[str] = []
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        connected(path, LockWatch(path, said.append)).cursor().execute("select * from missing")
    assert said == []


def made(folder: Path) -> TuningStudy:
    config = tuning_config(
        {
            "train": {"method": "adl", "model": "mlp"},
            "space": {"lr": {"uniform": [0.01, 1.0]}},
            "objectives": [{"metric": "test_loss"}],
        }
    )
    return study_of(folder, "s", config)


def test_a_study_that_stays_locked_is_named_through_optuna(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("told_s", "patience_s"):
        monkeypatch.setitem(LockWatch.__init__.__kwdefaults__, name, 0.0)
    study = made(tmp_path)
    other = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    other.execute("begin exclusive")
    with pytest.raises(ResourceError, match="database is locked"):
        study.spent_s = 1.0
    assert study.lock.error is not None
    other.execute("rollback")


class View:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, line: Any) -> None:
        pass


def test_a_loss_within_a_trial_is_said_and_noted(tmp_path: Path) -> None:
    study, view = made(tmp_path), View()
    number = study.optuna.ask().number
    watch = Watch(study, (), view)  # type: ignore[arg-type]
    trial = SimpleNamespace(config={"number": number, "params": {}})
    watch.on_trial_result(trial=trial, result={"epoch": 1, "lost": ""})
    watch.on_trial_result(trial=trial, result={"epoch": 2, "lost": "stage 1 is lost: going on"})
    watch.on_trial_result(trial=trial, result={"epoch": 3, "lost": "again\nand again"})
    losses = ["stage 1 is lost: going on", "again", "and again"]
    assert study.trial(number).user_attrs["losses"] == losses
    assert view.said == [f"trial {number}: {each}" for each in losses]


def test_a_run_without_progress_tells_its_losses_to_those_who_hear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(recovery, "_hearers", [])
    recovery.hear_losses(heard.append)
    attempts = iter([ActorLostError("stage 1 is lost"), None])

    def attempt() -> str:
        error = next(attempts)
        if error is not None:
            raise error
        return "done"

    assert recovery.with_recovery(attempt, 3, lambda text: None, lambda: "step 40") == "done"
    assert heard == ["stage 1 is lost: going on from step 40 (restart 1 of 3)"]
