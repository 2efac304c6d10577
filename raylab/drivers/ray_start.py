"""Ray for a run: the session of this process, the cluster of RAY_ADDRESS, or one of its own.

A Ray of its own keeps its sockets and logs in a folder that only its user may enter, runs its
workers at this process's niceness, is watched while runs go on, and leaves nothing behind.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from actors.wires.private_folder import PrivateFolder, clear_stale
from raylab._beside import check_workers_path
from raylab.drivers.ray_lines import leave_out_the_known
from raylab.drivers.ray_watch import watch_own
from raylab.errors import ResourceError

__all__ = ["connect", "disconnect", "started_here"]

_started: set[str] = set()
"""Addresses of the local Rays that were started here: a second run shares their CPUs, too."""
_folders: list[PrivateFolder] = []
"""Of the local Ray that was started here."""
_log = logging.getLogger("raylab")

_ANSWER_S = 30.0
"""How long a cluster's address may take to answer, unless the user has said how long to wait."""
_PAUSE_S = 0.5
_TRIES = 2
_LONGEST_BASE = 40
"""Letters of a folder for Ray's: a socket's path has 107, of which Ray's names take up to 65."""
_NICENESS = "RAY_worker_niceness"


def connect(wait_s: float | None = None) -> bool:
    """Connect to Ray: to this process's session, to RAY_ADDRESS, or to a new local one.

    A local one is guarded by token authentication, and not joined by accident when another Ray
    runs on the machine; RAY_ADDRESS=auto joins that one.

    Args:
        wait_s: how long the cluster of RAY_ADDRESS may take to answer, in seconds; None: 30.

    Returns:
        Whether Ray is a local one that was started here, by this call or by an earlier one.

    Raises:
        ResourceError: nobody answers at RAY_ADDRESS in time, or Ray does not start.
    """
    check_workers_path()
    if ray.is_initialized():
        return started_here()
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _join(address, _ANSWER_S if wait_s is None else wait_s)
        leave_out_the_known()
        return False
    _start()
    leave_out_the_known()
    _started.add(_gcs_address())
    watch_own(_leave_nothing)
    return True


def disconnect() -> None:
    """Leave Ray; one that was started here ends, and its folder goes. May be called twice."""
    ray.shutdown()
    _leave_nothing()


def _leave_nothing() -> None:
    while _folders:
        _folders.pop().close()


def started_here() -> bool:
    """Tell whether the session's Ray is a local one that was started by `connect`."""
    return _gcs_address() in _started


def _gcs_address() -> str:
    address: str = ray.get_runtime_context().gcs_address
    return address


# ------------------------------------------------------------------ a cluster that is there


def _join(address: str, wait_s: float) -> None:
    if "://" in address and not address.startswith("ray://"):
        raise ResourceError(
            f"RAY_ADDRESS must be that of a cluster, HOST:PORT, ray://HOST:PORT or auto, but got "
            f"{address}, which takes jobs: raylab submit runs a command there"
        )
    _see_answer(address, wait_s)
    try:
        with _own_handler(), _quiet():
            ray.init(logging_level=logging.WARNING)
    except (Exception, SystemExit) as error:
        raise ResourceError(
            f"RAY_ADDRESS must be that of a cluster that can be joined, but {address} cannot: "
            f"{_reason(error)}: unset RAY_ADDRESS for a Ray on this machine"
        ) from error


def _see_answer(address: str, wait_s: float) -> None:
    """Wait until somebody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    if not port.isdecimal():  # auto, or what Ray will refuse
        return
    ends = time.monotonic() + wait_s
    while True:
        left_s = ends - time.monotonic()
        try:
            with socket.create_connection((host.strip("[]"), int(port)), max(0.1, left_s)):
                return
        except (OSError, OverflowError) as error:
            if left_s <= _PAUSE_S:
                raise ResourceError(
                    f"RAY_ADDRESS must be that of a cluster that runs, but nobody answers at "
                    f"{address} within {wait_s:g} s ({error}): start it, or unset RAY_ADDRESS for "
                    "a Ray on this machine"
                ) from error
        time.sleep(_PAUSE_S)


# ------------------------------------------------------------------ one of its own


def _start() -> None:
    """Start a local Ray; again where it has taken too long, as it may on a busy machine."""
    known = _token_file().exists()
    for attempt in range(1, _TRIES + 1):
        try:
            with _own_handler(), _quiet():
                _start_once()
        except (Exception, SystemExit) as error:
            disconnect()
            if attempt < _TRIES and _may_pass(error):
                _log.warning("raylab: Ray has not started in time: trying once more")
                continue
            raise ResourceError(
                f"a Ray of this machine must start, but it has not: {_reason(error)}"
            ) from error
        break
    _see_to_token(known=known)


def _start_once() -> None:
    options: dict[str, Any] = {}
    folder = _folder()
    if folder is not None:
        # Ray makes its own folder everybody's; the one around it stays closed.
        options["_temp_dir"] = str(folder.path / "r")
    if _NICENESS not in os.environ:
        # Ray's own default, 15, leaves a worker 4 % of a core that an ordinary process wants.
        options["_system_config"] = {"worker_niceness": os.getpriority(os.PRIO_PROCESS, 0)}
    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, **options)


def _folder() -> PrivateFolder | None:
    """Return where Ray keeps its sockets and logs; None: where the user says, or Ray's default."""
    _leave_nothing()  # of a Ray that the user has shut down
    if os.environ.get("RAY_TMPDIR"):
        return None
    for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - a new folder in it, for us alone
        clear_stale(base)
        if len(base) + len("/raylab-ray-12345678") > _LONGEST_BASE:
            continue
        with contextlib.suppress(OSError):
            if not _folders:
                # After Ray's own end, which was registered before.
                atexit.register(disconnect)
            _folders.append(PrivateFolder("ray", base))
            return _folders[-1]
    return None


def _may_pass(error: BaseException) -> bool:
    """Tell whether a failure may be one of this moment: a machine that is too busy."""
    text = str(error).lower()
    return isinstance(error, (TimeoutError, SystemExit)) or "time" in text


def _reason(error: BaseException) -> str:
    """Return why Ray has not started, in a line."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, SystemExit):
        first = "its own processes do not answer"
    if isinstance(error, AuthenticationError) or "auth" in str(error).lower():
        return (
            f"{first}: a cluster with token authentication needs RAY_AUTH_MODE=token and its token "
            "in ~/.ray/auth_token, or in RAY_AUTH_TOKEN"
        )
    return first


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _see_to_token(*, known: bool) -> None:
    """Keep a token that Ray has just made to its user; tell of an older one that others can read.

    Args:
        known: it was there before.
    """
    path = _token_file()
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode & 0o777
        if mode & 0o077 and not known:
            path.chmod(0o600)
        elif mode & 0o077:
            _log.warning(
                "raylab: note: others can read Ray's token, %s (mode %o), and with it run code as "
                "you: chmod 600 %s",
                path,
                mode,
                path,
            )


# ------------------------------------------------------------------ manners


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Put the caller's handler of SIGTERM back, if he has one, in place of Ray's."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        main = threading.current_thread() is threading.main_thread()
        if main and before not in (signal.SIG_DFL, None):
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Ray warns of at every start though it is as it should be."""

    def new(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Token authentication is enabled")

    source = logging.getLogger("ray._private.authentication.authentication_token_setup")
    source.addFilter(new)
    try:
        yield
    finally:
        source.removeFilter(new)
