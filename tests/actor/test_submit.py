"""Jobs on a Ray of their own, behind a token, reached as a person's cluster is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raylab.cli.main import main
from raylab.drivers.submit import ClusterJobs

# A head and its dashboard are a dozen processes, each of which takes its time to start.
pytestmark = [pytest.mark.actor, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    address: str
    token: Path

    def submit(self, *words: str) -> int:
        return main(["submit", "--address", self.address, "--token-file", str(self.token), *words])


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Start a head as `ray up` does, on ports and in a folder of its own."""
    # A raylet gives its agent 15 s, which a busy machine may need longer for.
    for _ in range(5):
        # pytest's own folders are too deep for the names of Ray's sockets.
        folder = Path(tempfile.mkdtemp(prefix="ray"))
        process, found = started(folder)
        try:
            if any("This command will now block" in line for line in process.stdout):
                yield found
                return
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)
    pytest.fail("a head did not start")


def started(folder: Path) -> tuple[subprocess.Popen[str], Head]:
    token = folder / "token"
    token.write_text("a-token-of-this-test-0123456789abcdef")
    dashboard, client, agent, grpc, metrics = free_ports(5)
    options = {
        "port": 0,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": grpc,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": 2,
        "object-store-memory": 100_000_000,
        "temp-dir": folder,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    process = subprocess.Popen(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        env={
            **{name: text for name, text in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return process, Head(f"http://127.0.0.1:{dashboard}", token)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a working directory: what a job reads, and what it must not see."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "settings.yaml").write_text("method: bp\nmodel: mlp\nstages: 1\nepochs: 1\n")
    (folder / "auth_token").write_text("secret")
    (folder / "large.bin").write_bytes(bytes(1000))
    return folder


def test_a_job_trains_from_its_working_directory_and_its_log_is_followed(head, project, capsys):
    runs = project.parent / "runs"
    words = ["train", "settings.yaml", f"storage={runs}", "name=one", "--quiet", "--json"]
    options = ["--working-dir", str(project), "--exclude", "*.bin", "--id", "good"]
    assert head.submit(*options, "--", *words) == 0
    out, err = capsys.readouterr()
    assert "job: good" in err
    last = out.strip().splitlines()[-1]
    assert json.loads(last)["config"]["model"] == "mlp"
    assert (runs / "one" / "result.json").is_file()
    # Followed again, it is the same log; asked for, too.
    assert head.submit("--attach", "good") == 0
    assert capsys.readouterr().out == out
    assert head.submit("--logs", "good") == 0
    assert capsys.readouterr().out == out


def test_a_job_that_fails_gives_its_own_exit_code(head, project, capsys):
    options = ["--working-dir", str(project), "--id", "bad", "--json"]
    assert head.submit(*options, "--", "train", "adl", "stages=0") == 2
    out, err = capsys.readouterr()
    assert "raylab: error: `stages` must" in err
    assert json.loads(out) == {
        "job": "bad",
        "status": "FAILED",
        "exit_code": 2,
        "message": json.loads(out)["message"],
    }
    assert head.submit("--status", "bad") == 0
    assert capsys.readouterr().out == "bad FAILED\n"


def test_a_job_is_left_found_again_and_stopped(head, capsys, monkeypatch):
    # It never ends by itself.
    words = ["train", "bp", "model=mlp", "stages=1", "epochs=1000000"]
    words.append(f"storage={head.token.parent / 'runs'}")
    options = ["--no-upload", "--env", "OMP_NUM_THREADS=1", "--id", "long"]
    assert head.submit(*options, "--no-wait", "--", *words) == 0
    assert capsys.readouterr().out.split()[0] == "long"

    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    follow = ClusterJobs.follow
    monkeypatch.setattr(
        ClusterJobs, "follow", lambda jobs, job, said: follow(jobs, job, interrupted)
    )
    assert head.submit("--attach", "long") == 130
    err = capsys.readouterr().err
    assert f"raylab submit --address {head.address} --stop long" in err
    monkeypatch.undo()
    assert head.submit("--status", "long", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "RUNNING"
    assert head.submit("--stop", "long") == 0
    assert capsys.readouterr().out == "long STOPPED\n"
    assert head.submit("--attach", "long") == 130


def test_nobody_comes_in_without_the_token_and_unknown_jobs_are_named(head, tmp_path, capsys):
    wrong = tmp_path / "wrong"
    wrong.write_text("another-token-0123456789abcdef")
    for token in (head.token, wrong):
        words = ["--address", head.address, "--token-file", str(token), "--status", "none"]
        assert main(["submit", *words]) == 2
    err = capsys.readouterr().err
    assert "there must be a job none" in err
    assert f"the cluster at {head.address} wants its token" in err
