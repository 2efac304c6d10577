"""One process at a time has a run's folder, and a dead one has none."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem

from raylab.errors import ConfigError, DataError
from raylab.records import STALE_S, Hold, RunFolder, Storage
from raylab.records import hold as hold_module
from raylab.records.hold import Holder, _renew, _withdraw

pytestmark = pytest.mark.unit


@pytest.fixture(params=["local", "far"])
def folder(request, tmp_path) -> Iterator[Storage]:
    """A folder on this disk, and one whose file system is not known to be that."""
    if request.param == "local":
        yield Storage.at(tmp_path)
        return
    far = PyFileSystem(FSSpecHandler(fsspec.filesystem("file")))
    yield Storage.at(str(tmp_path), far)


def claimed(folder: Storage, holder: Holder, age_s: float = 0.0) -> str:
    """Leave a claim behind as a process would that has ended without giving back."""
    name = ".held-0123456789ab.json"
    folder.write(name, json.dumps(asdict(holder)).encode(), hidden=True)
    aged(folder, name, age_s)
    return name


def aged(folder: Storage, name: str, age_s: float) -> None:
    path = Path(folder.path) / name
    before = path.stat().st_mtime - age_s
    os.utime(path, (before, before))


def ended_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


ELSEWHERE = {"host": "node-7", "machine": "another boot", "pid": 12, "began": 3}


def test_a_folder_that_is_held_is_refused_with_who_holds_it_and_free_once_given_back(folder):
    first = Hold.take(folder)
    mine = Holder.here()
    told = f"is held by process {os.getpid()} on {mine.host} since .*: wait until it has ended"
    with pytest.raises(ConfigError, match=told):
        Hold.take(folder)
    with pytest.raises(ConfigError, match=told):
        Hold.refuse_others(folder)
    first.check()
    first.release()
    assert folder.hidden(".held-") == {}
    Hold.take(folder).release()


def test_of_many_that_take_a_folder_at_once_one_wins(folder):
    start = threading.Barrier(6)
    won: list[Hold] = []
    refused: list[str] = []

    def contend() -> None:
        start.wait()
        try:
            won.append(Hold.take(folder))
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 5)
    assert len(folder.hidden(".held-")) == 1
    won[0].release()


def test_of_two_claims_that_see_each_other_the_one_of_the_smaller_name_stays(folder, monkeypatch):
    monkeypatch.setattr(hold_module, "_YIELD_S", 0.0)
    # Both have looked before either has written: the look at others finds nobody.
    monkeypatch.setattr(Hold, "refuse_others", staticmethod(lambda _: None))
    name = claimed(folder, Holder.here())
    with pytest.raises(ConfigError, match="held by process"):
        Hold.take(folder)
    assert list(folder.hidden(".held-")) == [name]


def test_the_claim_of_a_killed_process_is_taken_over_at_once(folder):
    claimed(folder, replace(Holder.here(), pid=ended_process()))
    hold = Hold.take(folder)
    assert len(folder.hidden(".held-")) == 1
    hold.release()


def test_a_process_that_has_ended_and_was_not_waited_for_is_dead(folder):
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    claimed(folder, replace(Holder.here(), pid=child.pid))
    Hold.take(folder).release()
    child.wait()


def test_a_pid_that_another_process_has_by_now_holds_nothing(folder):
    here = Holder.here()
    assert here.began is not None
    claimed(folder, replace(here, began=here.began - 1))
    Hold.take(folder).release()


@pytest.mark.parametrize("readable", [True, False])
def test_a_claim_from_another_machine_counts_until_it_was_not_renewed_for_a_minute(
    folder, monkeypatch, readable
):
    monkeypatch.setattr(hold_module, "_YIELD_S", 0.0)
    name = claimed(folder, Holder(**ELSEWHERE, since="today"), age_s=STALE_S / 2)
    if not readable:
        folder.write(name, b"{", hidden=True)
        aged(folder, name, STALE_S / 2)
    who = "process 12 on node-7 since today" if readable else "another process"
    told = f"is held by {who}: .* lapses 60 s after its last renewal, or delete {folder}/{name}"
    with pytest.raises(ConfigError, match=told):
        Hold.take(folder)
    aged(folder, name, STALE_S)
    Hold.take(folder).release()
    assert folder.hidden(".held-") == {}


def test_a_hold_renews_its_claim_until_it_is_gone(folder):
    hold = Hold.take(folder)
    (name,) = folder.hidden(".held-")
    aged(folder, name, 30.0)
    before = folder.hidden(".held-")[name]
    assert before is not None
    assert folder.renew(name)
    after = folder.hidden(".held-")[name]
    assert after is not None
    assert after > before
    assert json.loads(folder.read(name, hidden=True))["pid"] == os.getpid()
    folder.delete(name, hidden=True)
    lost = threading.Event()
    waits: Any = type("Now", (), {"wait": lambda self, _: lost.is_set()})()
    _renew(folder, name, waits, lost)
    assert lost.is_set()
    hold._lost.set()
    folder.write("config.yaml", b"")
    with pytest.raises(DataError, match="was deleted, or found dead by another process"):
        hold.check()
    hold.release()


def test_a_child_that_was_forked_off_does_not_give_back_what_its_parent_holds(folder):
    hold = Hold.take(folder)
    (name,) = folder.hidden(".held-")
    _withdraw(folder, name, threading.Event(), os.getpid() + 1)
    assert list(folder.hidden(".held-")) == [name]
    hold.release()


def test_a_hold_that_is_forgotten_is_given_back(folder):
    hold = Hold.take(folder)
    del hold
    gc.collect()
    Hold.take(folder).release()


def test_a_patient_taker_waits_for_the_end_of_another(folder, monkeypatch):
    hold = Hold.take(folder)
    monkeypatch.setattr(hold_module.time, "sleep", lambda _: hold.release())
    Hold.take(folder, patience_s=600.0).release()


# ----------------------------------------------------------------- of runs


def test_a_second_run_of_a_name_is_refused_before_the_first_has_written_anything(tmp_path):
    storage = Storage.at(tmp_path)
    with RunFolder(storage, "x") as first, pytest.raises(ConfigError, match="is held by process"):
        RunFolder(storage, "x")
    del first


def test_a_run_that_is_running_is_not_gone_on_with_and_is_left_as_it_is(tmp_path):
    storage = Storage.at(tmp_path)
    with RunFolder(storage, "x") as first:
        first.write_config({"seed": 1})
        with pytest.raises(ConfigError, match="is held by process"):
            RunFolder.resumed(storage.child("x"))
        first.check()
    with RunFolder.resumed(storage.child("x")) as again:
        assert again.read_config() == {"seed": 1}


def test_a_run_that_fails_before_it_began_leaves_no_folder(tmp_path):
    storage = Storage.at(tmp_path / "deep" / "runs")
    with RunFolder(storage, "x") as folder:
        folder.folder.child("checkpoints").make()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_before_stays_with_what_is_in_it(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    with RunFolder(Storage.at(tmp_path), "x"):
        pass
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["notes.txt"]


def test_a_run_that_has_begun_keeps_its_folder_even_without_its_configuration(tmp_path):
    with RunFolder(Storage.at(tmp_path), "x") as folder:
        folder.write_config({})
        folder.folder.child("checkpoints").write("part", b"a")
        (folder.path / "config.yaml").unlink()
    assert (tmp_path / "x" / "checkpoints" / "part").exists()


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_folder_that_vanishes_is_named_and_not_made_again(tmp_path, how):
    with RunFolder(Storage.at(tmp_path), "x") as folder:
        folder.write_config({})
        if how == "moved":
            folder.path.rename(tmp_path / "y")
        else:
            for path in folder.path.iterdir():
                path.unlink()
            folder.path.rmdir()
        told = f"{tmp_path}/x has been moved or deleted: move it back, and raylab resume"
        with pytest.raises(DataError, match=told):
            folder.check()
        with pytest.raises(DataError, match=told):
            folder.folder.child("checkpoints", "step-00000001").write("stage-0.pt", b"a")
        with pytest.raises(DataError, match=told):
            folder.write_metrics([{"step": 1}])
    assert [path.name for path in tmp_path.iterdir()] == (["y"] if how == "moved" else [])


def test_a_folder_that_is_held_for_a_block_goes_with_it_if_it_is_empty(tmp_path):
    storage = Storage.at(tmp_path / "a" / "b")
    with Hold.of(storage), pytest.raises(ConfigError, match="is held by"), Hold.of(storage):
        pass
    assert list(tmp_path.iterdir()) == []
    with Hold.of(storage):
        storage.write("kept", b"")
    assert storage.names() == ["kept"]
