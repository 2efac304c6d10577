"""Jobs on a cluster: a command of raylab's sent to it, followed to its end, looked at, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raylab.errors import ConfigError, InputError, RaylabError, ResourceError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = ["EXCLUDES", "ClusterJobs", "JobState"]

EXCLUDES = (
    *(".git/", ".venv/", "venv/", "__pycache__/", "*.egg-info/", "node_modules/", "/build/"),
    *("/dist/", "/runs/", ".*_cache/", ".hypothesis/", ".ipynb_checkpoints/"),
    *(".env", ".ssh/", "*.pem", "auth_token"),
)
"""What of a working directory no job needs, or no cluster should see; as in .gitignore."""

STOPPED = 130
"""Exit code of a job that somebody stopped: that of a command that was interrupted."""

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_RETRY_S = 1.0
_RETRIES = 60


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How it stands with a job.

    Attributes:
        job: its id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: what Ray says of it.
        exit_code: of its command; None: it goes on, or never began, or was stopped.
    """

    job: str
    status: str
    message: str
    exit_code: int | None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def outcome(self) -> int:
        """Exit code for whoever waited for the job: its own; 130 if it was stopped."""
        if self.status == "STOPPED":
            return STOPPED
        if self.status == "SUCCEEDED":
            return 0
        code = self.exit_code
        # A signal's number, below 0, is no code that a process can end with; nor has a job that
        # never began one.
        return code if code is not None and 0 < code < 256 else 1


class ClusterJobs:
    """The jobs of a cluster.

    Args:
        address: of its dashboard, http://HOST:PORT.
        token: of the cluster; None: it asks for none.

    Raises:
        ConfigError: the address is none of a dashboard, or Ray lacks its part for jobs.
        ResourceError: nobody answers there.
        InputError: the token is not the cluster's.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address if "://" in address else f"http://{address}"
        if not self.address.startswith(("http://", "https://")):
            raise ConfigError(
                f"the address must be that of a dashboard, http://HOST:8265, but got {address!r}"
            )
        headers = None if token is None else {"Authorization": f"Bearer {token}"}
        with _answers(self.address):
            self._client = _client(self.address, headers)

    def submit(
        self,
        words: Sequence[str],
        *,
        working_dir: Path | None = None,
        excludes: Sequence[str] = (),
        requirements: Path | None = None,
        variables: Mapping[str, str] | None = None,
        job: str | None = None,
    ) -> str:
        """Start `python -m raylab WORDS` on the head; return the job's id.

        Args:
            words: of the command.
            working_dir: is sent along, and is the job's; None: there is none.
            excludes: what of it stays here, beside EXCLUDES and what its .gitignore names.
            requirements: a file of what pip installs for the job and its actors.
            variables: of the environment of the job and its actors.
            job: id; None: Ray makes one.

        Raises:
            ConfigError: a file is not there, or the cluster refuses the job.
        """
        runtime: dict[str, Any] = {"env_vars": dict(variables or {})}
        if working_dir is not None:
            if not working_dir.is_dir():
                raise ConfigError(f"the working directory must be a folder, but got {working_dir}")
            runtime["working_dir"] = str(working_dir)
            runtime["excludes"] = [*EXCLUDES, *excludes]
        if requirements is not None:
            if not requirements.is_file():
                raise ConfigError(f"the requirements must be a file, but got {requirements}")
            runtime["pip"] = str(requirements)
        entrypoint = shlex.join(["python", "-m", "raylab", *words])
        for _ in range(_RETRIES):
            with contextlib.suppress(_NotYetError), _answers(self.address):
                sent: str = self._client.submit_job(
                    entrypoint=entrypoint, runtime_env=runtime, submission_id=job
                )
                return sent
            time.sleep(_RETRY_S)
        raise ResourceError(
            f"the cluster at {self.address} must have a node that takes jobs, but none does after "
            f"{_RETRIES * _RETRY_S:g} s: ray status says more"
        )

    def follow(self, job: str, said: Callable[[str], None]) -> JobState:
        """Pass the log of a job on as it grows, until the job has ended.

        Args:
            job: id.
            said: is called with each piece of the log, once.

        Raises:
            RaylabError: the connection was lost; the job goes on.
        """
        log = _Log(said)
        state = self.state(job)
        failures = 0
        while True:
            try:
                asyncio.run(self._tail(job, log))
                state = self.state(job)
                failures = 0
            except (RaylabError, OSError, RuntimeError, _client_error()) as error:
                failures += 1
                if failures > _RETRIES:
                    raise RaylabError(
                        f"the connection to {self.address} was lost ({error}); job {job} goes on"
                    ) from None
            else:
                if state.ended:
                    # What was written after the last look, or while there was no connection.
                    log.begin()
                    log.more(self.log(job))
                    return state
            # The log ends a moment before the job does; and a head may be away for a while.
            time.sleep(_RETRY_S)

    async def _tail(self, job: str, log: _Log) -> None:
        log.begin()
        tail = cast("AsyncGenerator[str, None]", self._client.tail_job_logs(job))
        # Whatever ends this, the connection is closed.
        async with contextlib.aclosing(tail) as pieces:
            async for piece in pieces:
                log.more(piece)

    def state(self, job: str) -> JobState:
        """Return how it stands with a job.

        Raises:
            InputError: there is no such job.
        """
        with _answers(self.address, job):
            found = self._client.get_job_info(job)
        return JobState(
            job=job,
            status=str(found.status),
            message=found.message or "",
            exit_code=found.driver_exit_code,
        )

    def log(self, job: str) -> str:
        """Return all that a job has said so far.

        Raises:
            InputError: there is no such job.
        """
        with _answers(self.address, job):
            text: str = self._client.get_job_logs(job)
        return text

    def stop(self, job: str) -> JobState:
        """Stop a job, wait for its end, and return how it ended.

        Raises:
            InputError: there is no such job.
        """
        with _answers(self.address, job):
            self._client.stop_job(job)
        while not (state := self.state(job)).ended:
            time.sleep(_RETRY_S / 4)
        return state


class _NotYetError(Exception):
    """The dashboard is up, and does not know its own node yet."""


class _Log:
    """Passes a log on once, however often it is read from its beginning.

    Args:
        said: takes the pieces.
    """

    def __init__(self, said: Callable[[str], None]) -> None:
        self._said = said
        self._passed = 0
        self._read = 0

    def begin(self) -> None:
        """Say that the log is read from its beginning now."""
        self._read = 0

    def more(self, piece: str) -> None:
        """Pass on what of a piece is new."""
        new = piece[max(0, self._passed - self._read) :]
        self._read += len(piece)
        self._passed = max(self._passed, self._read)
        if new:
            self._said(new)


def _client(address: str, headers: dict[str, str] | None) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    # Ray lets this variable go before the argument.
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = address
    try:
        return JobSubmissionClient(address, headers=headers)
    finally:
        if before is None:
            del os.environ[_ADDRESS]
        else:
            os.environ[_ADDRESS] = before


def _client_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError


@contextlib.contextmanager
def _answers(address: str, job: str | None = None) -> Iterator[None]:
    """Turn what Ray's client raises into errors that name the way out."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError:
        raise InputError(
            f"the cluster at {address} wants its token: --token-file FILE, RAY_AUTH_TOKEN, or "
            "~/.ray/auth_token must hold it"
        ) from None
    except (ConnectionError, RequestException):
        raise ResourceError(
            f"a cluster must answer at {address}, but nobody does: ray dashboard FILE.yaml makes "
            "a tunnel to it; another address is given by --address or RAY_API_SERVER_ADDRESS"
        ) from None
    except (RuntimeError, ValueError) as error:
        if "No available agent" in str(error):
            raise _NotYetError from None
        if "ray[default]" in str(error):
            raise ConfigError(
                "jobs need Ray's own part for them: pip install 'raylab-train[cluster]'"
            ) from None
        if job is not None and "404" in str(error):
            raise InputError(f"there must be a job {job} at {address}, but there is none") from None
        raise ConfigError(f"the cluster at {address} refuses this: {error}") from None
