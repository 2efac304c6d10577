"""How a Ray is joined or started, in what place, and what of its lines is repeated."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from actors.wires.private_folder import PrivateFolder, clear_stale
from raylab.drivers import niceness, ray_start, ray_watch
from raylab.drivers.ray_lines import left
from raylab.drivers.ray_start import connect, disconnect
from raylab.drivers.termination import TERMINATION
from raylab.errors import RaylabError, ResourceError

pytestmark = pytest.mark.unit


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Stand in for Ray, which is not there yet; return the arguments of each start."""
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(ray_start.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_start.ray, "init", lambda **options: begun.append(options))
    monkeypatch.setattr(ray_start.ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_start, "_gcs_address", lambda: "here:1")
    monkeypatch.setattr(ray_start, "_started", set())
    monkeypatch.setattr(ray_start, "watch_own", lambda _: None)
    monkeypatch.setattr(ray_start.atexit, "register", lambda _: None)
    monkeypatch.setattr(ray_start.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(ray_start, "_LONGEST_BASE", 1000)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_worker_niceness"):
        monkeypatch.delenv(name, raising=False)
    return begun


# ------------------------------------------------------------------ one of its own


def test_a_local_ray_lives_in_a_folder_of_its_user_alone_and_leaves_nothing(fake_ray, tmp_path):
    assert connect()
    inside = Path(fake_ray[0]["_temp_dir"])
    assert inside.parent.parent == tmp_path
    # The inner one is made, and opened to all, by Ray.
    assert stat.S_IMODE(inside.parent.stat().st_mode) == 0o700
    assert not inside.exists()
    disconnect()
    assert not list(tmp_path.glob("raylab-*"))


def test_where_the_user_says_where_rays_files_go_they_go_there(fake_ray, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "mine"))
    connect()
    assert "_temp_dir" not in fake_ray[0]


def test_a_folder_whose_sockets_would_have_too_long_a_path_is_not_taken(fake_ray, monkeypatch):
    monkeypatch.setattr(ray_start, "_LONGEST_BASE", 40)
    monkeypatch.setattr(ray_start.tempfile, "gettempdir", lambda: "/" + "a" * 60)
    connect()
    assert Path(fake_ray[0]["_temp_dir"]).parent.parent == Path("/tmp")  # noqa: S108
    disconnect()


def test_workers_have_the_callers_niceness_unless_the_environment_has_another(
    fake_ray, monkeypatch
):
    connect()
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert fake_ray[0]["_system_config"] == {"worker_niceness": mine}
    monkeypatch.setenv("RAY_worker_niceness", "7")
    connect()
    assert "_system_config" not in fake_ray[1]
    disconnect()


def test_a_start_that_takes_too_long_is_tried_once_more(fake_ray, monkeypatch, caplog):
    tries = []

    def init(**options):
        tries.append(options["_temp_dir"])
        if len(tries) == 1:
            raise RuntimeError("The node has timed out\nwith a long story")

    monkeypatch.setattr(ray_start.ray, "init", init)
    assert connect()
    assert len(set(tries)) == 2
    assert "trying once more" in caplog.text
    disconnect()


@pytest.mark.parametrize(
    ("error", "tries", "message"),
    [
        (TimeoutError("took long"), 2, "a Ray of this machine must start, but .*: took long$"),
        (SystemExit(15), 2, "its own processes do not answer"),
        (OSError("no space\nand more"), 1, "no space$"),
        (RuntimeError("Authentication failed"), 1, "RAY_AUTH_MODE=token"),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(
    fake_ray, monkeypatch, tmp_path, error, tries, message
):
    count = []

    def init(**_):
        count.append(1)
        raise error

    monkeypatch.setattr(ray_start.ray, "init", init)
    with pytest.raises(ResourceError, match=message) as found:
        connect()
    assert "\n" not in str(found.value)
    assert len(count) == tries
    assert not list(tmp_path.glob("raylab-*"))


def test_a_token_that_others_can_read_is_told_and_a_new_one_is_kept_to_its_user(
    fake_ray, monkeypatch, tmp_path, caplog
):
    token = tmp_path / "token"

    def init(**_):
        token.touch()
        token.chmod(0o644)

    monkeypatch.setattr(ray_start.ray, "init", init)
    connect()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert not caplog.records
    connect()
    assert f"chmod 600 {token}" in caplog.text
    disconnect()


# ------------------------------------------------------------------ a cluster's


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_answers_is_an_error_within_the_wait(fake_ray, monkeypatch, form):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = form.format(taken.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ResourceError, match=f"nobody answers at {address} within 0.1 s"):
            connect(0.1)
    assert not fake_ray


def test_an_address_of_jobs_is_refused(fake_ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ResourceError, match="takes jobs: raylab submit"):
        connect()


def test_a_cluster_that_answers_is_joined_as_it_is(fake_ray, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        assert not connect()
    assert fake_ray == [{"logging_level": logging.WARNING}]


# ------------------------------------------------------------------ its end


class Process:
    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


@pytest.mark.parametrize(
    ("running", "connected", "told"),
    [(True, True, True), (False, True, False), (True, False, False)],
    ids=["in a run", "between runs", "while Ray is left"],
)
def test_a_ray_that_dies_in_a_run_ends_it_in_one_line(monkeypatch, running, connected, told):
    node = types.SimpleNamespace(kill_all_processes=lambda **_: None)
    monkeypatch.setattr(ray_watch.ray._private.worker, "_global_node", node)
    monkeypatch.setattr(ray_watch.ray, "is_initialized", lambda: connected)
    monkeypatch.setattr(ray_watch, "_LOOK_S", 0.0)
    monkeypatch.setattr(type(TERMINATION), "running", property(lambda _: running))
    failures: list[RaylabError] = []
    monkeypatch.setattr(TERMINATION, "fail", failures.append)
    monkeypatch.setattr(TERMINATION, "_where", lambda: "raylab resume runs/a")
    processes = {"head (the GCS)": Process(), "node manager (the raylet)": Process(-9)}
    ray_watch._watch(node, processes, list)
    assert [str(each) for each in failures] == [
        "Ray's node manager (the raylet) on this machine has died, and the run with it: go on with "
        "raylab resume runs/a"
    ] * told


# ------------------------------------------------------------------ folders


def test_folders_of_dead_processes_are_cleared_and_no_others(tmp_path):
    base = str(tmp_path)
    living = PrivateFolder("ray", base)
    young = tmp_path / "raylab-ipc-abcdefgh"
    dead, held = tmp_path / "raylab-ray-12345678", tmp_path / "raylab-ipc-12345678"
    open_to_all, users = tmp_path / "raylab-ray-87654321", tmp_path / "raylab-ray-results"
    old, old_full = tmp_path / "raylab-aaaaaaaa", tmp_path / "raylab-bbbbbbbb"
    for each in (young, dead, held, open_to_all, users, old, old_full):
        each.mkdir(mode=0o700)
    (dead / "r").mkdir()
    (dead / "r" / "log").write_text("of a killed process")
    (old_full / "file").touch()
    open_to_all.chmod(0o755)
    for each in (living.path, dead, held, open_to_all, users, old, old_full):
        os.utime(each, (0, 0))
    (tmp_path / "raylab-ray-linklink").symlink_to(users)
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert clear_stale(base) == [old.name, dead.name]
    os.close(lock)
    assert users.is_dir()
    assert open_to_all.is_dir()
    assert (old_full / "file").exists()
    assert living.path.is_dir()
    living.close()
    living.close()
    assert not living.path.exists()
    assert clear_stale(base) == [held.name]


# ------------------------------------------------------------------ lines


def test_what_is_known_is_left_out_and_all_else_is_repeated():
    assert left(["Reporting training result 3: TrainingReport(...)", "loss is odd"], None) == [
        "loss is odd"
    ]
    assert left(["Traceback (most recent call last):", "ValueError: no"], "StageWorker") == [
        "Traceback (most recent call last):",
        "ValueError: no",
    ]
    assert left(["Graceful shutdown of backend failed."], "TrainController") == []


def test_a_thread_that_waits_for_nothing_is_no_watch():
    """Nothing of Ray's that is not known is relied on."""
    before = threading.active_count()
    ray_watch.watch_own(list)
    assert threading.active_count() == before


# ------------------------------------------------------------------ niceness


def test_actors_that_are_nicer_than_the_driver_are_told_once_with_what_to_set(monkeypatch):
    monkeypatch.setattr(niceness, "_told", [])
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    said: list[str] = []
    niceness.tell_of_niceness([mine, mine], said.append)
    assert not said
    niceness.tell_of_niceness([mine, mine + 1], said.append)
    niceness.tell_of_niceness([mine + 1], said.append)
    (line,) = said
    assert f"niceness {mine + 1} and this process at {mine}" in line
    assert f"RAY_worker_niceness={mine} " in line
