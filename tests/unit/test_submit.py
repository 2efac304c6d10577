"""`raylab submit` without a cluster: what it sends, passes on, and makes of an end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from raylab.cli import submit as command
from raylab.cli.main import main
from raylab.drivers import submit
from raylab.drivers.submit import EXCLUDES, ClusterJobs, JobState
from raylab.errors import ConfigError, InputError, RaylabError, ResourceError

pytestmark = pytest.mark.unit


class Client:
    """Stands for Ray's: answers in the order that a test has written down."""

    def __init__(
        self,
        *,
        tails: Sequence[Any] = (),
        states: Sequence[tuple[str, int | None]] = (("SUCCEEDED", 0),),
        log: str = "",
        refusals: Sequence[Exception] = (),
    ) -> None:
        self.tails = list(tails)
        self.states = list(states)
        self.log = log
        self.refusals = list(refusals)
        self.sent: dict[str, Any] = {}
        self.stopped: list[str] = []

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for piece in self.tails.pop(0) if self.tails else ():
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def get_job_info(self, job: str) -> Any:
        if self.refusals:
            raise self.refusals.pop(0)
        status, code = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return SimpleNamespace(status=status, message="why", driver_exit_code=code)

    def get_job_logs(self, job: str) -> str:
        return self.log

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)

    def submit_job(self, **given: Any) -> str:
        if self.refusals:
            raise self.refusals.pop(0)
        self.sent = given
        return given["submission_id"] or "made"


@pytest.fixture
def jobs(monkeypatch):
    """Give what makes the jobs of a cluster that a client stands for; no time passes."""
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)

    def made(client: Client) -> ClusterJobs:
        monkeypatch.setattr(submit, "_client", lambda address, headers: client)
        return ClusterJobs("127.0.0.1:8265", "token")

    return made


def followed(jobs: ClusterJobs) -> tuple[str, JobState]:
    said: list[str] = []
    state = jobs.follow("a", said.append)
    return "".join(said), state


# --- following


def test_a_log_is_passed_on_once_whatever_happens_to_the_connection(jobs):
    client = Client(
        tails=[
            ["one\n", "two\n", RuntimeError("WebSocket closed")],
            [aiohttp.ClientError("refused")],
            [OSError("no network")],
            ["one\n", "tw", "o\nthr"],
            ["one\ntwo\nthree\n"],
        ],
        states=[("PENDING", None), ("RUNNING", None), ("SUCCEEDED", 0)],
        log="one\ntwo\nthree\nfour\n",
    )
    text, state = followed(jobs(client))
    assert text == "one\ntwo\nthree\nfour\n"
    assert state.outcome == 0
    assert client.tails == []


def test_a_job_is_followed_to_its_end_not_to_that_of_its_log(jobs):
    client = Client(
        tails=[["a"], ["a"]], states=[*[("RUNNING", None)] * 3, ("FAILED", 1)], log="ab"
    )
    text, state = followed(jobs(client))
    assert text == "ab"
    assert state.outcome == 1


def test_a_connection_that_stays_lost_is_an_error_that_says_that_the_job_goes_on(jobs):
    client = Client(tails=[[OSError("gone")]] * 100, states=[("RUNNING", None)])
    with pytest.raises(RaylabError, match=r"was lost \(gone\); job a goes on") as caught:
        followed(jobs(client))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 130, 130),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
        ("STOPPED", 143, 130),
    ],
)
def test_the_exit_code_is_the_jobs(status, code, outcome):
    state = JobState(job="a", status=status, message="", exit_code=code)
    assert state.ended
    assert state.outcome == outcome


# --- sending


def test_a_job_is_sent_with_its_folder_without_what_stays_here(jobs, tmp_path):
    client = Client()
    requirements = tmp_path / "requirements.txt"
    requirements.touch()
    job = jobs(client).submit(
        ["train", "adl", "name=a b"],
        working_dir=tmp_path,
        excludes=["*.bin"],
        requirements=requirements,
        variables={"A": "1"},
    )
    assert job == "made"
    assert client.sent["entrypoint"] == "python -m raylab train adl 'name=a b'"
    assert client.sent["runtime_env"] == {
        "working_dir": str(tmp_path),
        "excludes": [*EXCLUDES, "*.bin"],
        "pip": str(requirements),
        "env_vars": {"A": "1"},
    }


def test_keys_and_environments_are_never_sent():
    assert {".git/", ".venv/", ".env", "*.pem", "auth_token", "/runs/"} <= set(EXCLUDES)


def test_a_head_that_has_just_started_is_waited_for(jobs):
    early = RuntimeError("Request failed with status code 500: No available agent to submit job")
    client = Client(refusals=[early] * 3)
    assert jobs(client).submit(["plan"], job="b") == "b"
    with pytest.raises(ResourceError, match="must have a node that takes jobs"):
        jobs(Client(refusals=[early] * 1000)).submit(["plan"])


@pytest.mark.parametrize("wrong", ["working_dir", "requirements"])
def test_what_is_not_there_is_refused_before_anything_is_sent(jobs, tmp_path, wrong):
    client = Client()
    with pytest.raises(ConfigError, match="none"):
        jobs(client).submit(["plan"], **{wrong: tmp_path / "none"})
    assert client.sent == {}


def test_what_the_cluster_refuses_is_said(jobs):
    with pytest.raises(ConfigError, match=r"refuses this: .*already"):
        jobs(Client(refusals=[RuntimeError("a exists already")])).submit(["plan"], job="a")
    with pytest.raises(InputError, match="there must be a job a"):
        jobs(Client(refusals=[RuntimeError("status code 404: none")])).state("a")


@pytest.mark.parametrize("address", ["ray://head:10001", "auto://x"])
def test_an_address_must_be_that_of_a_dashboard(address):
    with pytest.raises(ConfigError, match="http://HOST:8265"):
        ClusterJobs(address)


# --- the command


def test_the_command_follows_and_ends_with_the_jobs_code(jobs, capsys):
    jobs(Client(tails=[["line\n"]], states=[("RUNNING", None), ("FAILED", 2)], log="line\nlast\n"))
    assert main(["submit", "--no-upload", "--", "plan", "averaging"]) == 2
    out, err = capsys.readouterr()
    assert out == "line\nlast\n"
    assert err == "job: made\nraylab: job made FAILED\n"


def test_a_job_that_never_began_says_why(jobs, capsys):
    jobs(Client(states=[("FAILED", None)]))
    assert main(["submit", "--attach", "a"]) == 1
    assert "raylab: job a FAILED: why" in capsys.readouterr().err


def test_for_machines_the_last_line_is_json_and_the_log_goes_elsewhere(jobs, capsys):
    jobs(Client(tails=[["line\n"]], log="line\n"))
    assert main(["submit", "--no-upload", "--json", "--", "train", "demo"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "job": "made", "status": "SUCCEEDED", "exit_code": 0, "message": "why"
    }  # fmt: skip
    assert "line\n" in err


def test_an_interrupted_look_leaves_the_job_and_says_how_to_stop_it(jobs, capsys):
    client = Client(tails=[["line\n", KeyboardInterrupt()]], states=[("RUNNING", None)])
    jobs(client)
    assert main(["submit", "--address", "http://h:1", "--attach", "a"]) == 130
    out, err = capsys.readouterr()
    assert out == "line\n"
    assert "job a goes on" in err
    assert "raylab submit --address http://h:1 --stop a" in err
    assert client.stopped == []


def test_a_job_can_be_looked_at_and_stopped(jobs, capsys):
    jobs(Client(states=[("RUNNING", None)], log="so far\n"))
    assert main(["submit", "--status", "a"]) == 0
    assert main(["submit", "--logs", "a"]) == 0
    assert capsys.readouterr().out == "a RUNNING\nso far\n"
    client = Client(states=[("RUNNING", None), ("STOPPED", None)])
    jobs(client)
    assert main(["submit", "--stop", "a"]) == 0
    assert capsys.readouterr().out == "a STOPPED\n"
    assert client.stopped == ["a"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a command must stand behind --"),
        (["--"], "a command must stand behind --"),
        (["train", "demo"], "unrecognized arguments"),
        (["--", "trane"], "the command must be one of"),
        (["--", "submit"], "the command must be one of"),
        (["--status", "a", "--", "train", "demo"], "--status takes no command"),
        (["--status", "a", "--stop", "a"], "not allowed with"),
        (["--env", "A", "--", "train", "demo"], "--env must be KEY=VALUE"),
        (["--token-file", "/none", "--", "train", "demo"], "the token's file must be readable"),
        (["--address", "ray://x", "--", "train", "demo"], "that of a dashboard"),
    ],
)
def test_the_command_refuses(words, said, capsys):
    assert main(["submit", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_the_command_teaches_itself(capsys):
    assert main(["submit", "--help"]) == 0
    text = capsys.readouterr().out
    assert "raylab submit -- train adl" in text
    for option in ("--status", "--logs", "--attach", "--stop", "--no-wait", "--pip", "--exclude"):
        assert f"  {option} " in text


def test_the_token_is_looked_for_where_ray_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command._token(None, {}) is None
    home = tmp_path / ".ray" / "auth_token"
    home.parent.mkdir()
    home.write_text("home\n")
    other, given = tmp_path / "other", tmp_path / "given"
    other.write_text("other")
    given.write_text("given")
    assert command._token(None, {}) == "home"
    assert command._token(None, {"RAY_AUTH_TOKEN_PATH": str(other)}) == "other"
    both = {"RAY_AUTH_TOKEN_PATH": str(other), "RAY_AUTH_TOKEN": "variable"}
    assert command._token(None, both) == "variable"
    assert command._token(given, both) == "given"
    home.write_text("\n")
    with pytest.raises(ConfigError, match="must hold a token"):
        command._token(None, {})


def test_the_address_is_the_given_one_or_rays_variable_or_the_tunnels(monkeypatch):
    seen: list[str] = []

    class Seen(ClusterJobs):
        def __init__(self, address: str, token: str | None = None) -> None:
            seen.append(address)
            raise ResourceError("seen")

    monkeypatch.setattr(submit, "ClusterJobs", Seen)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    main(["submit", "--status", "a"])
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://variable:1")
    main(["submit", "--status", "a"])
    main(["submit", "--address", "http://given:1", "--status", "a"])
    assert seen == ["http://127.0.0.1:8265", "http://variable:1", "http://given:1"]


def test_rays_own_variable_does_not_go_before_the_address(monkeypatch):
    import ray.job_submission

    seen = {}

    def made(address: str, headers: Any) -> None:
        seen.update(address=address, headers=headers, variable=submit.os.environ[submit._ADDRESS])

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", made)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://variable:1")
    ClusterJobs("http://given:1", "t")
    assert seen == {
        "address": "http://given:1",
        "headers": {"Authorization": "Bearer t"},
        "variable": "http://given:1",
    }
    assert submit.os.environ["RAY_API_SERVER_ADDRESS"] == "http://variable:1"
